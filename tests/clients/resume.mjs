// resume.mjs ADDRESS [BROWSER]: a client that resumes after a cut from what JSON.parse gave it, in Node or in the browser, and
// publishes with acknowledgements. It prints for each topic whether it was recovered, and the sequences that followed.
import { WebSocket } from "ws";
import { launch, say } from "./browser.mjs";

/** Runs where `WebSocket` is: uses nothing else from outside. */
async function resume(address) {
  const check = (holds, what) => {
    if (!holds) throw new Error(what);
  };

  /** A session with features. `until` resolves to the next message, from the first on, that fulfils a condition. */
  async function open(features) {
    const socket = new WebSocket(`ws://${address}/ws`, ["tickcast.v1.json"]);
    const [messages, waiting] = [[], new Set()];
    await new Promise((resolve, reject) => {
      socket.onopen = resolve;
      socket.onerror = () => reject(new Error("no connection"));
    });
    socket.onmessage = ({ data }) => {
      messages.push(...[JSON.parse(data)].flat());
      for (const look of waiting) look();
    };
    const until = (fulfils) =>
      new Promise((resolve) => {
        const look = () => {
          const found = messages.find(fulfils);
          if (found === undefined) return;
          waiting.delete(look);
          resolve(found);
        };
        waiting.add(look);
        look();
      });
    const send = (request) => socket.send(JSON.stringify(request));
    send({ op: "hello", id: 1, features });
    const { features: granted } = await until(({ op }) => op === "welcome");
    check(String(granted) === String(features), `granted ${granted}`);
    return { socket, messages, until, send };
  }

  const publisher = await open(["published"]);
  let requests = 1;
  const publish = (topic) => {
    requests += 1;
    const id = requests;
    publisher.send({ op: "publish", id, topic, data: { n: id } });
    return publisher.until((message) => message.op === "published" && message.id === id);
  };

  // Live, and where each topic is.
  const reader = await open(["positions"]);
  reader.send({ op: "subscribe", id: 2, topics: ["d.*"] });
  await reader.until(({ op, id }) => op === "subscribed" && id === 2);
  const last = {};
  for (const topic of ["d.x", "d.y", "d.x", "d.y", "d.x"]) last[topic] = await publish(topic);
  for (const topic of Object.keys(last)) await reader.until((tick) => tick.topic === topic && tick.seq === last[topic].sequence);
  const positions = {};
  for (const { op, topics, topic, seq } of reader.messages) {
    for (const announced of topics ?? []) positions[announced.topic] ??= { epoch: announced.epoch, sequence: 0 };
    if (op === undefined) positions[topic].sequence = seq;
  }
  for (const [topic, { epoch, sequence }] of Object.entries(last)) {
    check(Number.isSafeInteger(epoch) && Number.isSafeInteger(sequence), `${topic}: ${epoch} ${sequence}`);
    check(positions[topic].epoch === epoch && positions[topic].sequence === sequence, `${topic}: another position`);
  }

  // The cut, and what is missed meanwhile.
  reader.socket.terminate ? reader.socket.terminate() : reader.socket.close();
  for (const topic of ["d.x", "d.y", "d.x"]) last[topic] = await publish(topic);

  // Back, from what a store of text has kept.
  const again = await open(["positions"]);
  again.send({ op: "subscribe", id: 3, topics: ["d.*"], from: { positions: JSON.parse(JSON.stringify(positions)) } });
  const lines = [];
  for (const topic of Object.keys(last).sort()) {
    const recovered = await again.until((message) => message.op === "recovered" && message.topic === topic);
    check(recovered.epoch === positions[topic].epoch, `${topic}: the epoch is ${recovered.epoch}`);
    await again.until((tick) => tick.op === undefined && tick.topic === topic && tick.seq === last[topic].sequence);
    const ticks = again.messages.filter((tick) => tick.op === undefined && tick.topic === topic);
    check(ticks.every(({ snapshot }) => snapshot === undefined), `${topic}: a snapshot`);
    lines.push(`${topic} recovered ${recovered.recovered}: ${ticks.map(({ seq }) => seq).join(" ")}`);
  }
  check(again.messages.every(({ op }) => op !== "gap" && op !== "conflated" && op !== "error"), "something is missing");
  return lines;
}

const [address, program] = process.argv.slice(2);
if (program === undefined) {
  (await resume(address)).forEach(say);
  say("end");
  process.exit(0);
}
const browser = await launch(program);
const page = await browser.newPage();
await page.goto(`http://${address}/`);
(await page.evaluate(resume, address)).forEach(say);
await browser.close();
say("end");
