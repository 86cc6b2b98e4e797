// relay.mjs FROM PATTERN TO PREFIX FILE: republishes the ticks of one server on another, as PREFIX + topic. FILE keeps its place: started again, it goes on where
// it was, with at most the last second twice.
//
// Node 22 and later. With Node 20: node --experimental-websocket relay.mjs ...
import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { Client } from "../bundle/tickcast.js"; // in your project: from "tickcast"

const [from, pattern, to, prefix, file] = process.argv.slice(2);
if (file === undefined) {
  console.error("usage: node relay.mjs FROM PATTERN TO PREFIX FILE");
  process.exit(2);
}

/** Ticks that wait for their acknowledgement. */
const UNANSWERED_MAX = 256;
/** Ticks that wait for those; beyond, the oldest are dropped. */
const QUEUE_MAX = 65_536;

// Only what the other server has acknowledged counts, so the relay saves positions itself.
const positions = existsSync(file) ? JSON.parse(readFileSync(file, "utf8")) : {};
function save() {
  writeFileSync(`${file}.new`, JSON.stringify(positions));
  renameSync(`${file}.new`, file);
}

const source = new Client(from, { codec: "native", name: "relay", positions });
const target = new Client(to, { codec: "native", name: "relay" });
const ticks = source.subscribe(pattern, { from: "oldest" });
ticks.on("gap", ({ topic, from, to }) => console.log(`gap ${topic} ${from} ${to}`));
ticks.on("lagged", ({ dropped }) => console.log(`dropped ${dropped}`));
ticks.on("recovered", ({ topic, recovered, reason }) => recovered || console.log(`not recovered ${topic} ${reason}`));
for (const [name, client] of [["source", source], ["target", target]]) {
  client.on("state", ({ state, reason }) => console.log(`${name} ${state} ${reason}`));
}

/** Publishes one tick until it is acknowledged. It may be there twice if an acknowledgement was lost. */
async function relay({ topic, epoch, sequence, data, key, schema, timeNs }) {
  for (;;) {
    try {
      await target.publish(prefix + topic, data, { key, schema, timeNs });
      break;
    } catch (error) {
      if (error.outcome === "refused") throw error;
      await new Promise((done) => setTimeout(done, 100));
    }
  }
  positions[topic] = { epoch, sequence };
}

const saving = setInterval(save, 1_000);
process.on("SIGTERM", () => source.disconnect());
process.on("SIGINT", () => source.disconnect());

const unanswered = new Set();
/** The last publish of each topic: the next one waits for it, so that a topic keeps its order. */
const lasts = new Map();
for await (const tick of ticks.ticks({ queueMax: QUEUE_MAX })) {
  const sent = (lasts.get(tick.topic) ?? Promise.resolve()).then(() => relay(tick)).finally(() => unanswered.delete(sent));
  lasts.set(tick.topic, sent);
  unanswered.add(sent);
  if (unanswered.size >= UNANSWERED_MAX) await Promise.race(unanswered);
}
await Promise.all(unanswered);
clearInterval(saving);
save();
target.disconnect();
console.log("end");
