// The stock socket.io-client: socketio.mjs HOST:PORT TRANSPORTS. Prints "restart" when the server shall be restarted, waits for a
// line, and prints "end" after the last check.
import assert from "node:assert/strict";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { io } from "socket.io-client";

const [address, transports] = process.argv.slice(2);
const lines = createInterface({ input: process.stdin });
const options = { transports: transports.split(","), reconnectionDelay: 50, reconnectionDelayMax: 200, forceNew: true };
const open = (more = {}, path = "/") => io(`http://${address}${path}`, { ...options, ...more });
const ask = (socket, ...event) => socket.timeout(60_000).emitWithAck(...event);

/** The events of these names, in order; `next` waits for the next one. */
function collect(socket, ...names) {
  const events = [];
  let wake = () => {};
  for (const name of names)
    socket.on(name, (...given) => {
      events.push([name, ...given]);
      wake();
    });
  events.next = async () => {
    while (events.length === 0) await new Promise((resolve) => (wake = resolve));
    return events.shift();
  };
  return events;
}

async function nextTick(events) {
  for (;;) {
    const [name, tick] = await events.next();
    if (name === "tick") return tick;
  }
}

const socket = open();
const events = collect(socket, "tick", "subscribed", "gap", "conflated", "recovered", "closing", "failed");
await once(socket, "connect");
assert.match(socket.id, /^[0-9a-f]+-[0-9a-f]+$/);
if (transports !== "polling" && socket.io.engine.transport.name !== "websocket") await once(socket.io.engine, "upgrade");
assert.equal(socket.io.engine.transport.name, transports === "polling" ? "polling" : "websocket");

// Rooms are topics. Each event is acknowledged.
assert.deepEqual(await ask(socket, "subscribe", "room.>"), { op: "subscribed", id: 0, pattern: "room.>", topics: [] });
const published = await ask(socket, "publish", "room.a", { price: 1.5, text: "\u{20ac}\u{1f600}" }, { key: 7 });
assert.equal(published.op, "published");
assert.equal(published.sequence, 1);
const [, announced] = await events.next();
assert.equal(announced.topics[0].topic, "room.a");
const [name, tick] = await events.next();
assert.equal(name, "tick");
assert.deepEqual([tick.topic, tick.seq, tick.key, tick.data], ["room.a", 1, 7, { price: 1.5, text: "\u{20ac}\u{1f600}" }]);

// Binary payloads, as small as none, and longer than 64 KiB, which a POST cannot be.
for (const length of [0, 1, 300, transports === "polling" ? 40_000 : 100_000]) {
  const payload = Buffer.alloc(length, 0xfe);
  assert.equal((await ask(socket, "publish", "room.b", payload)).op, "published");
  assert.ok(Buffer.from((await nextTick(events)).data).equals(payload), `${length} bytes`);
}

// What fails says why, and the session goes on.
const codes = [];
for (const event of [["subscribe", "room.>"], ["subscribe", "a..b"], ["unsubscribe", "none"], ["shout"], ["publish", "a", { deep: Buffer.of(1) }]])
  codes.push((await ask(socket, ...event)).code);
assert.deepEqual(codes, [106, 102, 105, 100, 100]);
socket.emit("shout");
assert.equal((await events.next())[0], "failed");
assert.equal((await ask(socket, "unsubscribe", { topic: "room.>" })).op, "unsubscribed");

// The last value of each key, and everything after a position.
assert.equal((await ask(socket, "subscribe", "room.a", { from: "latest", policy: "conflate", max_rate: 1000 })).op, "subscribed");
assert.ok((await nextTick(events)).snapshot);
for (let seq = 2; seq <= 4; seq++) assert.equal((await ask(socket, "publish", "room.a", seq)).sequence, seq);
const other = open();
const recovered = collect(other, "tick", "recovered");
await ask(other, "subscribe", "room.a", { from: { epoch: published.epoch, sequence: 1 } });
assert.equal((await recovered.next())[0], "recovered");
for (let seq = 2; seq <= 4; seq++) assert.equal((await nextTick(recovered)).seq, seq);

// Namespaces other than the main one do not exist.
const chat = open({}, "/chat");
const [refused] = await once(chat, "connect_error");
assert.equal(refused.message, "Invalid namespace");
assert.equal(chat.connected, false);

// A client that leaves, and one whose server stops: it reconnects by itself.
other.disconnect();
const leaving = once(socket, "disconnect");
console.log("restart");
await once(lines, "line");
const [reason] = await leaving;
assert.ok(["transport close", "transport error"].includes(reason), reason);
const closing = events.find(([name]) => name === "closing");
assert.equal(closing?.[1].code, 3001);
if (!socket.connected) await once(socket, "connect");
events.length = 0;
assert.equal((await ask(socket, "subscribe", "room.a")).op, "subscribed");
assert.equal((await ask(socket, "publish", "room.a", null)).sequence, 1);
assert.equal((await nextTick(events)).data, null);
socket.disconnect();
lines.close();
console.log("end");
