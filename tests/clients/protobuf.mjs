// protobufjs with tickcast.proto: protobuf.mjs HOST:PORT PROTO. Prints "end" after the last check. The server keeps four ticks of
// each topic.
import assert from "node:assert/strict";
import { once } from "node:events";
import protobuf from "protobufjs";
import WebSocket from "ws";

const [address, file] = process.argv.slice(2);
const root = await protobuf.load(file);
const [Request, Events] = ["Request", "Events"].map((name) => root.lookupType(`tickcast.v1.${name}`));

/** A session that has asked for these features. */
class Client {
  queue = [];
  /** Most events in one message. */
  most = 0;
  #wake = () => {};

  static async open(...features) {
    const client = new Client();
    client.socket = new WebSocket(`ws://${address}/ws`, "tickcast.v1.protobuf");
    client.socket.on("message", (data) => {
      const { events } = Events.decode(data);
      client.most = Math.max(client.most, events.length);
      client.queue.push(...events);
      client.#wake();
    });
    await once(client.socket, "open");
    assert.equal(client.socket.protocol, "tickcast.v1.protobuf");
    client.send({ id: 1, hello: { name: "protobufjs", features } });
    const welcome = await client.next("welcome");
    assert.deepEqual([welcome.id, welcome.features], [1, features]);
    return client;
  }

  send(fields) {
    const request = Request.fromObject(fields);
    assert.equal(Request.verify(request), null);
    this.socket.send(Request.encode(request).finish());
  }

  /** The next event, which has this name. Skips announcements of topics, which may be repeated. */
  async next(wanted) {
    for (;;) {
      while (this.queue.length === 0) await new Promise((resolve) => (this.#wake = resolve));
      const event = this.queue.shift();
      if (event.event === "topic" && wanted !== "topic") continue;
      assert.equal(event.event, wanted, JSON.stringify(event));
      const message = event[event.event];
      return message.$type.toObject(message, { longs: Number, enums: String, defaults: true });
    }
  }

  async subscribe(pattern, fields) {
    this.send({ id: 2, subscribe: { patterns: [pattern], ...fields } });
    assert.deepEqual(await this.next("subscribed"), { id: 2, pattern });
  }

  async publish(topic, payload, fields) {
    this.send({ id: 3, publish: { topic, payload: Buffer.from(payload), ...fields } });
    const published = await this.next("published");
    assert.deepEqual([published.id, published.topic], [3, topic]);
    return published;
  }
}

const reader = await Client.open("reasons", "counts", "batches");
const writer = await Client.open("published");

// Every field of a tick. A number of 64 bits is a Long where a double does not hold it.
await reader.subscribe("js.>");
const published = await writer.publish("js.a", [0, 255], { key: "18446744073709551615", producerTimeNs: 5, schema: 3 });
assert.deepEqual([published.sequence, published.duplicate], [1, false]);
const topic = await reader.next("topic");
assert.deepEqual([topic.name, topic.epoch], ["js.a", published.epoch]);
const { ingestTimeNs, key, payload, ...tick } = await reader.next("tick");
assert.ok(ingestTimeNs > 1e18 && key === 2 ** 64);
assert.deepEqual([...payload], [0, 255]);
assert.deepEqual(tick, { topic: "js.a", sequence: 1, producerTimeNs: 5, schema: 3, payloadIsJson: false, snapshot: false });
for (const text of ["", '{"p":1.10}', "x".repeat(200_000)]) {
  await writer.publish("js.b", text);
  const tick = await reader.next("tick");
  assert.equal(tick.payload.toString(), text);
  assert.equal(tick.payloadIsJson, text.startsWith("{"));
}

// What fails says why, and the session goes on.
const codes = [];
for (const request of [{ subscribe: { patterns: ["js.>"] } }, { unsubscribe: { patterns: ["none"] } }, { publish: { topic: "a..b" } }, {}]) {
  reader.send({ id: 8, ...request });
  const error = await reader.next("error");
  assert.equal(error.id, 8);
  codes.push(error.code);
}
assert.deepEqual(codes, [106, 105, 101, 100]);
reader.send({ ping: { token: 7 } });
assert.deepEqual(await reader.next("pong"), { token: 7 });

// The rate limit conflates: what waits is released by a higher one.
await reader.subscribe("rate.a", { maxRate: 0.001 });
for (let n = 1; n <= 5; n++) await writer.publish("rate.a", `${n}`);
assert.equal((await reader.next("tick")).sequence, 1);
reader.send({ id: 4, update: { patterns: ["rate.a"], maxRate: 1000 } });
await reader.next("subscribed");
assert.deepEqual(await reader.next("conflated"), { topic: "rate.a", fromSequence: 2, toSequence: 5, count: 3 });
assert.equal((await reader.next("tick")).sequence, 5);

// Recovery by position: everything that the topic keeps, in one message, and what it no longer keeps.
let epoch;
for (let n = 1; n <= 10; n++) ({ epoch } = await writer.publish("kept.a", `${n}`));
reader.most = 0;
await reader.subscribe("kept.a", { after: { epoch, sequence: 0 } });
assert.deepEqual(await reader.next("recovered"), { topic: "kept.a", epoch, sequence: 10, recovered: true, reason: "NOT_RECOVERED_UNSPECIFIED" });
assert.deepEqual(await reader.next("gap"), { topic: "kept.a", fromSequence: 1, toSequence: 7, count: 6 });
for (let n = 7; n <= 10; n++) assert.equal((await reader.next("tick")).sequence, n);
assert.ok(reader.most > 1, "ticks that leave together are one message");
reader.send({ id: 5, unsubscribe: { patterns: ["kept.a"] } });
assert.deepEqual(await reader.next("unsubscribed"), { id: 5, pattern: "kept.a", code: 0, text: "" });
const other = await Client.open();
await other.subscribe("kept.*", { afterEach: { topics: { "kept.a": { epoch, sequence: 8 } } } });
assert.ok((await other.next("recovered")).recovered);
for (let n = 9; n <= 10; n++) assert.equal((await other.next("tick")).payload.toString(), `${n}`);
assert.equal(other.most, 1);

// Text closes the session, after an event that says so.
other.socket.send("{}");
assert.equal((await other.next("closing")).code, 1003);
if (other.socket.readyState !== WebSocket.CLOSED) await once(other.socket, "close");
for (const client of [reader, writer]) client.socket.terminate();
console.log("end");
