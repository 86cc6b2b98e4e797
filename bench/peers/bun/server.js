// A WebSocket server in Bun, whose engine is uWebSockets (C++), as a peer of tickcast in the benchmarks.
//
// Producers are one timer that publishes every tick that is due to the topic that all clients share. Bun hands each publish
// to uWebSockets' `publish`, which writes to each subscriber.
//
// On SIGINT or SIGTERM it prints one JSON object with the ticks it published.

const { parseArgs } = require("node:util");

const TOPIC = "ticks";
// Interval of the timer and of counting clients while the producers wait for them. A timer cannot be shorter.
const TIMER_MS = 1;

const { values } = parseArgs({
  options: {
    listen: { type: "string", default: "127.0.0.1:0" },
    producers: { type: "string", default: "50" },
    rate: { type: "string", default: "100" },
    size: { type: "string", default: "100" },
    "wait-clients": { type: "string", default: "0" },
  },
});
const [hostname, port] = values.listen.split(":");
const producers = Number(values.producers);
const rate = Number(values.rate);
const size = Number(values.size);
const waitClients = Number(values["wait-clients"]);

let clients = 0;
let published = 0;

const server = Bun.serve({
  hostname,
  port: Number(port),
  fetch(request, server) {
    return server.upgrade(request) ? undefined : new Response("this endpoint accepts only WebSocket requests\n", { status: 400 });
  },
  websocket: {
    perMessageDeflate: false,
    idleTimeout: 0,
    open(socket) {
      clients += 1;
      socket.subscribe(TOPIC);
    },
    close() {
      clients -= 1;
    },
    message() {},
  },
});

// The form that tickcast's simulator, publisher and load client share. `atNs` is a BigInt: nanoseconds exceed a double.
function payload(atNs, topic, n) {
  const text = `{"at":${atNs},"topic":${topic},"n":${n},"pad":"`;
  return `${text}${".".repeat(Math.max(0, size - text.length - 2))}"}`;
}

// Publishes what is due: tick number i of all producers together is due i / (producers * rate) seconds after the start, so the
// schedule does not depend on when the timer fires, and lateness is measured.
function produce() {
  const intervalNs = 1e9 / (producers * rate);
  // The clock of the payload is the wall clock, which JavaScript has in milliseconds only; it is read once, and the monotonic
  // clock counts from there.
  const startNs = BigInt(Math.round((performance.timeOrigin + performance.now()) * 1e3)) * 1000n;
  const start = Bun.nanoseconds();
  setInterval(() => {
    const elapsed = Bun.nanoseconds() - start;
    for (; published * intervalNs <= elapsed; published += 1) {
      const at = startNs + BigInt(Math.round(published * intervalNs));
      server.publish(TOPIC, payload(at, published % producers, Math.floor(published / producers) + 1));
    }
  }, TIMER_MS);
}

const waiting = setInterval(() => {
  if (clients >= waitClients) {
    clearInterval(waiting);
    if (producers > 0 && rate > 0) produce();
  }
}, TIMER_MS);

console.log(`http=${server.hostname}:${server.port}`);
for (const signal of ["SIGINT", "SIGTERM"]) {
  process.on(signal, () => {
    console.log(JSON.stringify({ published }));
    process.exit(0);
  });
}
