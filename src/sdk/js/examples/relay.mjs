// relay.mjs FROM PATTERN TO PREFIX FILE: republishes the ticks of one server on another, as PREFIX + topic. FILE keeps its place: started again, it goes on where
// it was, with at most the last second twice. It stops with exit code 1 if one of the servers ends it for good.
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
/** Time between two attempts to publish a tick. */
const RETRY_MS = 100;
/** Codes of the server's errors. */
const [TOO_LARGE, RATE_LIMITED] = [107, 109];

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
      // Another attempt would end in the same way.
      if (error.code === TOO_LARGE) {
        console.log(`too large ${topic} ${sequence}`);
        break;
      }
      const isFinal = error.outcome === "refused" && error.code !== RATE_LIMITED;
      const hasEnded = target.state === "disconnected" || source.state === "disconnected";
      if (isFinal || hasEnded || error.outcome === undefined) throw error;
      await new Promise((done) => setTimeout(done, RETRY_MS));
    }
  }
  positions[topic] = { epoch, sequence };
}

/** Why it stops before its time. */
let failure;
function fail(error) {
  failure ??= error;
  source.disconnect();
}

const saving = setInterval(save, 1_000);
process.on("SIGTERM", () => source.disconnect());
process.on("SIGINT", () => source.disconnect());

const unanswered = new Set();
/** The last publish of each topic: the next one waits for it, so that a topic keeps its order. */
const lasts = new Map();
try {
  for await (const tick of ticks.ticks({ queueMax: QUEUE_MAX })) {
    const last = lasts.get(tick.topic) ?? Promise.resolve();
    // After a failure the position stays before it.
    const next = last.then(() => failure ?? relay(tick)).catch(fail);
    const sent = next.finally(() => unanswered.delete(sent));
    lasts.set(tick.topic, sent);
    unanswered.add(sent);
    if (unanswered.size >= UNANSWERED_MAX) await Promise.race(unanswered);
  }
} catch (error) {
  fail(error);
}
await Promise.all(unanswered);
clearInterval(saving);
save();
target.disconnect();
if (failure !== undefined) {
  console.error(`relay: ${failure.message || failure}`);
  process.exitCode = 1;
}
console.log("end");
