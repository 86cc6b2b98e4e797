// decode.mjs: CPU time of the JavaScript SDK for one native tick of 100 bytes, from the message to the listener. Without a network or a server.
// Prints the machine, its load, and the times of ROUNDS rounds, each the mean over TICKS ticks.
import { cpus, loadavg } from "node:os";
import { Client } from "../../src/sdk/js/bundle/tickcast.js";

const TOPICS = 500;
const TICKS = 20_000;
const ROUNDS = 20;
const TICK = 67;
const SUBSCRIBED = 65;
const WELCOME = 64;

const encoder = new TextEncoder();

function frame(kind, record, payload, { sequence = 0, topicId = 0, flags = 0 } = {}) {
  const bytes = new Uint8Array((32 + record.length + payload.length + 15) & ~15);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, bytes.length, true);
  view.setUint16(4, 0x6374, true);
  view.setUint8(6, 1);
  view.setUint8(7, flags);
  view.setUint16(8, kind, true);
  view.setUint16(10, record.length, true);
  view.setUint32(12, payload.length, true);
  view.setBigUint64(16, BigInt(sequence), true);
  view.setUint32(24, topicId, true);
  bytes.set(record, 32);
  bytes.set(payload, 32 + record.length);
  return bytes;
}

function joined(frames) {
  const bytes = new Uint8Array(frames.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const frame of frames) {
    bytes.set(frame, at);
    at += frame.length;
  }
  return bytes.buffer;
}

const payload = encoder.encode(JSON.stringify({ at: 1_793_322_000_130_000_000, topic: 3, n: 141, pad: ".".repeat(47) }));

const load = loadavg()[0].toFixed(1);
console.log(`machine  ${cpus().length} x ${cpus()[0].model}, Node ${process.version}, load ${load} before the first round`);
console.log(`rounds   ${ROUNDS} of ${TICKS} ticks in ${TOPICS} topics`);
for (const [what, read] of [["envelope", (tick) => tick.sequence], ["with JSON", (tick) => tick.data.n]]) {
  for (const perMessage of [1, 100]) {
    let socket;
    class Socket {
      readyState = 1;
      protocol = "tickcast.v1.rkyv";
      constructor() {
        socket = this;
      }
      send() {}
      close() {}
    }
    const client = new Client("ws://host/ws", { codec: "native", webSocket: Socket });
    let sum = 0;
    client.subscribe("sim.>").on("tick", (tick) => (sum += read(tick)));
    socket.onopen({});
    const record = new Uint8Array(32);
    new DataView(record.buffer).setUint32(16, 262_144, true);
    socket.onmessage({ data: joined([frame(WELCOME, record, encoder.encode("server"))]) });
    for (let topicId = 1; topicId <= TOPICS; topicId += 1) {
      const announced = frame(SUBSCRIBED, new Uint8Array(16).fill(1), encoder.encode(`sim.${topicId}`), { topicId });
      socket.onmessage({ data: joined([announced]) });
    }
    const times = [];
    for (let round = 0; round < ROUNDS; round += 1) {
      const ticks = Array.from({ length: TICKS }, (_, at) =>
        frame(TICK, new Uint8Array(16).fill(1), payload, { sequence: round * TICKS + at + 1, topicId: 1 + (at % TOPICS), flags: 1 }),
      );
      const messages = [];
      for (let at = 0; at < TICKS; at += perMessage) messages.push(joined(ticks.slice(at, at + perMessage)));
      const before = process.cpuUsage();
      for (const data of messages) socket.onmessage({ data });
      const { user, system } = process.cpuUsage(before);
      times.push((user + system) / TICKS);
    }
    client.disconnect();
    if (!(sum > 0)) throw new Error("no tick arrived");
    times.sort((a, b) => a - b);
    const us = (at) => times[Math.min(ROUNDS - 1, Math.floor(at * ROUNDS))].toFixed(2);
    console.log(`${what}, ${perMessage} a message: p50 ${us(0.5)}, p90 ${us(0.9)}, max ${us(1)} us a tick`);
  }
}
