// What the servers in Node share: their options, and producers that publish on a schedule of their own.
//
// Producers are one loop that publishes every tick that is due, one in each turn of the event loop. Ticks come at a constant rate, or from a capture.

const fs = require("node:fs");
const { parseArgs } = require("node:util");

// Sleep until a tick is due, and interval of counting clients while the producers wait for them. A timer cannot be shorter.
const TIMER_MS = 1;

const { values } = parseArgs({
  options: {
    listen: { type: "string", default: "127.0.0.1:0" },
    producers: { type: "string", default: "50" },
    rate: { type: "string", default: "100" },
    size: { type: "string", default: "100" },
    "wait-clients": { type: "string", default: "0" },
    capture: { type: "string" },
    speed: { type: "string", default: "1" },
  },
});
const [host, port] = values.listen.split(":");
const producers = Number(values.producers);
const rate = Number(values.rate);
const size = Number(values.size);
const waitClients = Number(values["wait-clients"]);

const counts = { published: 0, delivered: 0, dropped: 0 };

// Tick number i of all producers together is due i / (producers * rate) seconds after the start.
function constantRate() {
  const intervalNs = 1e9 / (producers * rate);
  return { dueNs: (i) => i * intervalNs, tick: (i) => ({ topic: i % producers, n: Math.floor(i / producers) + 1, data: null }) };
}

// The ticks of a capture in a loop: lines of {"at_ns","topic","data"}, as tickcast replays them.
function capture(path, speed) {
  const topics = new Map();
  const lines = fs.readFileSync(path, "utf8").split("\n").filter(Boolean).map((line) => {
    const { at_ns: atNs, topic } = JSON.parse(line);
    if (!topics.has(topic)) topics.set(topic, { number: topics.size, each: 0 });
    const of = topics.get(topic);
    of.each += 1;
    return { atNs, of, nth: of.each, data: line.slice(line.indexOf('"data":') + '"data":'.length, -1) };
  });
  const roundNs = lines[lines.length - 1].atNs - lines[0].atNs;
  const round = (i) => Math.floor(i / lines.length);
  return {
    dueNs: (i) => (round(i) * roundNs + lines[i % lines.length].atNs - lines[0].atNs) / speed,
    tick: (i) => {
      const { of, nth, data } = lines[i % lines.length];
      return { topic: of.number, n: round(i) * of.each + nth, data };
    },
  };
}

// The form that tickcast's simulator, publisher and load client share: what follows the first numbers does not matter to them.
function payload(at, { topic, n, data }) {
  const head = `{"at":${at},"topic":${topic},"n":${n},"pad":"`;
  if (data !== null) return `${head}","data":${data}}`;
  return `${head}${".".repeat(Math.max(0, size - head.length - 2))}"}`;
}

// The schedule does not depend on when the loop gets its turn, so lateness is measured.
function produce(publish) {
  const { dueNs, tick } = values.capture ? capture(values.capture, Number(values.speed)) : constantRate();
  // JavaScript has the wall clock in milliseconds only. It is read once, and the monotonic clock counts from there.
  const startNs = BigInt(Math.round((performance.timeOrigin + performance.now()) * 1e3)) * 1000n;
  const start = process.hrtime.bigint();
  const turn = () => {
    const due = dueNs(counts.published);
    if (due > Number(process.hrtime.bigint() - start)) return setTimeout(turn, TIMER_MS);
    publish(payload(startNs + BigInt(Math.round(due)), tick(counts.published)));
    counts.published += 1;
    // Behind its schedule, it still lets sockets have their turn.
    return setImmediate(turn);
  };
  turn();
}

// Calls `publish(text)` for each tick once `--wait-clients` clients are there. Prints the counts at the end.
function start(clients, publish) {
  const waiting = setInterval(() => {
    if (clients() < waitClients) return;
    clearInterval(waiting);
    if (values.capture || (producers > 0 && rate > 0)) produce(publish);
  }, TIMER_MS);
  for (const signal of ["SIGINT", "SIGTERM"]) {
    process.on(signal, () => {
      console.log(JSON.stringify(counts));
      process.exit(0);
    });
  }
}

module.exports = { host, port: Number(port), counts, start };
