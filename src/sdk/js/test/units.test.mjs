// Parts that no transcript reaches: views, patterns, and what the application or a broken server may pass in. On the bundle that the server serves.
import assert from "node:assert/strict";
import { test } from "node:test";
import vm from "node:vm";
import { World } from "./simulated.mjs";

const NATIVE = "tickcast.v1.rkyv";
const [WELCOME, SUBSCRIBED, TICK, ERROR, PING] = [64, 65, 67, 69, 5];
const encoder = new TextEncoder();

/** A frame with a record of 32 bytes that `write` fills. */
function frame(kind, payload, { sequence = 0, topicId = 0, flags = 0, write = () => {} } = {}) {
  const bytes = new Uint8Array((64 + payload.length + 15) & ~15);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, bytes.length, true);
  view.setUint16(4, 0x6374, true);
  view.setUint8(6, 1);
  view.setUint8(7, flags);
  view.setUint16(8, kind, true);
  view.setUint16(10, 32, true);
  view.setUint32(12, payload.length, true);
  view.setBigUint64(16, BigInt(sequence), true);
  view.setUint32(24, topicId, true);
  write(new DataView(bytes.buffer, 32, 32));
  bytes.set(encoder.encode(payload), 64);
  return bytes.buffer;
}

const textTick = (sequence, payload) => frame(TICK, payload, { sequence, topicId: 5, flags: 1 });

/** The client connects, and topic a.x has number 5 and epoch 10. */
async function welcome(world) {
  await world.open(NATIVE);
  await world.receive(frame(WELCOME, "server", { write: (record) => record.setUint32(16, 262_144, true) }));
  await world.receive(frame(SUBSCRIBED, "a.x", { topicId: 5, write: (record) => record.setBigUint64(0, 10n, true) }));
  world.actions.splice(0);
}

/** A connected client, with native frames, and a subscription of `a.>`. */
async function connected(options = {}) {
  const world = new World({ wallMs: 0, random: [] });
  const client = new world.sdk.Client("ws://host/ws", { codec: "native", ...options });
  const subscription = client.subscribe("a.>");
  await welcome(world);
  return { world, client, subscription };
}

/** `count` ticks of a.x in one message. */
function ticksFrom(first, count) {
  const frames = Array.from({ length: count }, (_, at) => Buffer.from(textTick(first + at, String(first + at))));
  return Uint8Array.from(Buffer.concat(frames)).buffer;
}

const at = (sequence) => ({ "a.x": { epoch: 10, sequence } });

const tick = (topic, sequence, data) => ({ type: "tick", topic, epoch: 1, sequence, key: 0, data });

async function bookView() {
  const { subscription } = await connected();
  return subscription.book();
}

test("a payload that does not parse costs neither the connection nor the other ticks of its message", async () => {
  const { world, client, subscription } = await connected();
  const [keyed, book, seen] = [subscription.keyed(), subscription.book(), []];
  const snapshot = JSON.stringify({ type: "snapshot", bids: [[1, 2]] });
  subscription.on("tick", ({ sequence }) => seen.push(sequence));
  await world.receive(textTick(1, snapshot));
  assert.deepEqual([book.get("a.x").live, keyed.size], [true, 1]);
  const both = [textTick(2, "{"), textTick(3, "3")].map((bytes) => Buffer.from(bytes));
  await world.receive(Uint8Array.from(Buffer.concat(both)).buffer);
  assert.deepEqual(seen, [1, 2, 3]);
  assert.deepEqual([keyed.get("a.x"), book.get("a.x").live, client.state], [3, false, "connected"]);
  await world.receive(textTick(4, "{"));
  assert.equal(keyed.get("a.x"), undefined);
});

test("an exception in a view is reported, and does not keep its event from anyone", async () => {
  const { world, subscription } = await connected();
  const reported = [];
  const before = process.listeners("uncaughtException");
  process.removeAllListeners("uncaughtException");
  process.on("uncaughtException", (error) => reported.push(error.message));
  try {
    subscription.keyed().handle = () => {
      throw new Error("a bug of a view");
    };
    const seen = [];
    subscription.on("tick", ({ sequence }) => seen.push(sequence));
    await world.receive(textTick(1, "1"));
    assert.deepEqual([seen, reported], [[1], ["a bug of a view"]]);
  } finally {
    process.removeAllListeners("uncaughtException");
    for (const listener of before) process.on("uncaughtException", listener);
  }
});

test("positions are those of the events that every iterator has finished, and are saved again when more are", async () => {
  const saved = [];
  const { world, client, subscription } = await connected({ savePositions: (positions) => void saved.push(positions) });
  const ticks = subscription.ticks();
  const events = subscription.events();
  await world.receive(ticksFrom(1, 50));
  assert.equal((await ticks.next()).value.sequence, 1);
  for (let sequence = 1; sequence <= 10; sequence += 1) await events.next();
  await world.advance(1_000);
  assert.deepEqual([saved, client.positions], [[at(0)], at(0)]);
  // Nothing was read, so there is nothing to save.
  await world.advance(10_000);
  assert.equal(saved.length, 1);
  for (let sequence = 2; sequence <= 20; sequence += 1) await ticks.next();
  await world.advance(1_000);
  assert.deepEqual(saved.splice(1), [at(9)]);
  // An iterator that is left holds nothing back.
  await events.return();
  await world.advance(1_000);
  assert.deepEqual(saved.splice(1), [at(19)]);
  client.disconnect();
  let last = 0;
  for await (const { sequence } of ticks) last = sequence;
  assert.equal(last, 50);
  await world.advance(1_000);
  assert.deepEqual(saved.splice(1), [at(50)]);
  assert.equal(world.timers, 0);
});

test("positions of listeners are those of the last event, and of lives those of the oldest that is not finished", async () => {
  const { world, client, subscription } = await connected();
  subscription.on("tick", () => {});
  await world.receive(ticksFrom(1, 50));
  assert.deepEqual(client.positions, at(50));
  const ticks = subscription.ticks();
  await world.receive(ticksFrom(51, 2));
  await world.receive(frame(SUBSCRIBED, "a.x", { topicId: 5, write: (record) => record.setBigUint64(0, 11n, true) }));
  await world.receive(ticksFrom(1, 2));
  assert.deepEqual(client.positions, at(50));
  for (let count = 0; count < 4; count += 1) await ticks.next();
  assert.deepEqual(client.positions, { "a.x": { epoch: 11, sequence: 1 } });
});

test("positions are saved one at a time, also if that is slow", async () => {
  const [calls, ends] = [[], []];
  const savePositions = (positions) => {
    calls.push(positions);
    return new Promise((done) => ends.push(done));
  };
  const { world } = await connected({ savePositions });
  for (let sequence = 1; sequence <= 5; sequence += 1) {
    await world.receive(textTick(sequence, "1"));
    await world.advance(1_000);
  }
  assert.deepEqual(calls, [at(1)]);
  ends[0]();
  await world.settle();
  assert.deepEqual(calls, [at(1), at(5)]);
  ends[1]();
  await world.receive(textTick(6, "1"));
  await world.advance(1_000);
  assert.deepEqual(calls[2], at(6));
});

test("an iterator that is made after the end has the error of the end, and none waits for what does not come", async () => {
  const { world, client, subscription } = await connected();
  const { ClosedError } = world.sdk;
  const isClosed = (code) => (error) => error instanceof ClosedError && error.code === code;
  const refused = client.subscribe("b.>");
  await world.receive(frame(ERROR, "not allowed", { write: (record) => record.setUint32(0, 3, true) || record.setUint16(4, 108, true) }));
  await assert.rejects(refused.ticks().next(), isClosed(108));
  await assert.rejects(refused.events().next(), isClosed(108));
  const before = subscription.ticks();
  await world.close(3500, "go away");
  for (const iterator of [before, subscription.ticks(), subscription.events(), client.subscribe("c").ticks()]) {
    await assert.rejects(iterator.next(), isClosed(3500));
  }
  client.connect();
  const ticks = subscription.ticks();
  await welcome(world);
  await world.receive(textTick(1, "1"));
  assert.equal((await ticks.next()).value.sequence, 1);
  client.disconnect();
  for (const iterator of [ticks, subscription.ticks()]) assert.deepEqual(await iterator.next(), { value: undefined, done: true });
  subscription.unsubscribe();
  assert.deepEqual(await subscription.ticks().next(), { value: undefined, done: true });
});

test("an iterator may be made before the first connection", async () => {
  const world = new World({ wallMs: 0, random: [] });
  const client = new world.sdk.Client("ws://host/ws", { codec: "native" });
  client.disconnect();
  const ticks = client.subscribe("a.>").ticks();
  client.connect();
  await welcome(world);
  await world.receive(textTick(1, "1"));
  assert.equal((await ticks.next()).value.sequence, 1);
});

test("bytes of every kind are published as bytes, and as they were at the call", async () => {
  const world = new World({ wallMs: 0, random: [] });
  const client = new world.sdk.Client("ws://host/ws");
  const bytes = Uint8Array.of(1, 2, 3, 4);
  const other = vm.runInNewContext("[Uint8Array.of(1, 2, 3, 4), Uint8Array.of(1, 2, 3, 4).buffer]");
  const floats = new Float32Array(bytes.buffer);
  for (const data of [bytes, bytes.buffer, new DataView(bytes.buffer), floats, new Uint8Array(bytes.buffer, 1, 2), ...other]) {
    client.publish("a.x", data).catch(() => {});
  }
  bytes.fill(0);
  await world.open("tickcast.v1.json");
  const welcomed = { op: "welcome", id: 1, server: "s", epoch: 1, session: 1, frame_bytes_max: 262_144, features: [] };
  await world.receive(JSON.stringify(welcomed));
  const sent = world.actions.flatMap(({ send }) => (send?.op === "publish" ? [send] : []));
  const whole = { encoding: "base64", data: "AQIDBA==" };
  const expected = [whole, whole, whole, whole, { encoding: "base64", data: "AgM=" }, whole, whole];
  assert.deepEqual(sent.map(({ encoding, data }) => ({ encoding, data })), expected);
});

test("publishes that waited are sent as answers arrive, if there are more than may be unanswered", async () => {
  const world = new World({ wallMs: 0, random: [] });
  const client = new world.sdk.Client("ws://host/ws", { offlineQueueMax: 5_000 });
  const results = Array.from({ length: 2_000 }, (_, at) => client.publish("a.x", at));
  await world.open("tickcast.v1.json");
  const welcomed = { op: "welcome", id: 1, server: "s", epoch: 1, session: 1, frame_bytes_max: 262_144, features: [] };
  await world.receive(JSON.stringify(welcomed));
  let sequence = 0;
  const batches = [];
  for (;;) {
    const ids = world.actions.splice(0).flatMap(({ send }) => (send?.op === "publish" ? [send.id] : []));
    if (ids.length === 0) break;
    batches.push(ids.length);
    for (const id of ids) {
      sequence += 1;
      await world.receive(JSON.stringify({ op: "published", id, topic: "a.x", epoch: 10, sequence }));
    }
  }
  assert.deepEqual(batches, [1_024, 976]);
  assert.deepEqual((await Promise.all(results)).map(({ sequence }) => sequence), Array.from({ length: 2_000 }, (_, at) => at + 1));
});

test("a view that is closed does not change any more", async () => {
  const { world, subscription } = await connected();
  const [keyed, book, other] = [subscription.keyed(), subscription.book(), subscription.keyed()];
  await world.receive(textTick(1, "1"));
  keyed.close();
  book.close();
  await world.receive(textTick(2, '{"type":"snapshot"}'));
  assert.deepEqual([keyed.get("a.x"), book.get("a.x").live, other.get("a.x")], [1, false, { type: "snapshot" }]);
});

test("a topic of a keyed view is not complete if one of its keys did not fit", async () => {
  const { world, subscription } = await connected();
  const view = subscription.keyed({ entriesMax: 2 });
  for (let key = 1; key <= 2; key += 1) view.handle({ ...tick("a.x", key, key), key, snapshot: true });
  assert.equal(view.complete("a.x"), true);
  view.handle({ ...tick("a.y", 1, 1), key: 1 });
  assert.deepEqual([view.complete("a.x"), view.complete("a.y")], [false, true]);
  await world.settle();
});

test("positions that are none are refused before anything changes", async () => {
  const world = new World({ wallMs: 0, random: [] });
  const position = { epoch: 1, sequence: 2 };
  const wrong = [null, 7, {}, { epoch: 1 }, { epoch: 1.5, sequence: 1 }, { epoch: 1, sequence: -1 }, { epoch: "1", sequence: 1 }];
  for (const each of wrong) {
    const positions = { "a.x": position, "a.y": each };
    assert.throws(() => new world.sdk.Client("ws://host/ws", { positions }), TypeError);
    const client = new world.sdk.Client("ws://host/ws", { positions: { "b.x": position } });
    assert.throws(() => client.subscribe("a.>", { from: { positions } }), TypeError);
    assert.deepEqual(client.positions, { "b.x": position });
    client.subscribe("a.>").unsubscribe();
    client.disconnect();
  }
});

test("a tick is written as JSON with its payload", async () => {
  const { world, subscription } = await connected();
  const seen = [];
  subscription.on("tick", (tick) => seen.push(JSON.parse(JSON.stringify(tick))));
  await world.receive(textTick(1, '{"price":1}'));
  const expected = { type: "tick", topic: "a.x", epoch: 10, sequence: 1, timeNs: 0, ingestNs: 0, key: 0, snapshot: false, schema: 0 };
  assert.deepEqual(seen, [{ ...expected, data: { price: 1 } }]);
});

test("a book whose levels are no numbers is not live", async () => {
  const view = await bookView();
  for (const level of [["", 1], [" ", 1], [null, 1], [true, 1], [[], 1], [1, ""], [1, null], [1, -1], [1], ["x", 1], [1, "Infinity"]]) {
    view.handle(tick("a.x", 1, { type: "snapshot", bids: [["1.5", "2"]] }));
    assert.deepEqual([view.get("a.x").live, view.get("a.x").bids], [true, [[1.5, 2]]]);
    view.handle(tick("a.x", 2, { bids: [level] }));
    assert.equal(view.get("a.x").live, false, JSON.stringify(level));
  }
});

test("a book with too many levels is not live until a snapshot that fits", async () => {
  const view = await bookView();
  const bids = Array.from({ length: 65_536 }, (_, at) => [65_536 - at, 1]);
  view.handle(tick("a.x", 1, { type: "snapshot", bids }));
  assert.equal(view.get("a.x").live, true);
  view.handle(tick("a.x", 2, { bids: [[0.5, 1]] }));
  assert.deepEqual([view.get("a.x").live, view.get("a.x").bids.length], [false, 65_536]);
  view.handle(tick("a.x", 3, { type: "snapshot", bids: [[1, 1]] }));
  assert.equal(view.get("a.x").live, true);
});

test("a view has 65,536 books, and counts the ticks of others", async () => {
  const view = await bookView();
  for (let at = 0; at < 65_538; at += 1) view.handle(tick(`a.${at}`, 1, { type: "snapshot" }));
  view.handle(tick("a.0", 2, {}));
  assert.deepEqual([view.topics().length, view.notStored, view.get("a.65536")], [65_536, 2, undefined]);
});

test("wrong values of the application are refused", async () => {
  const { client, world } = await connected();
  for (const timeoutMs of [NaN, -1]) await assert.rejects(client.publish("a.x", 1, { timeoutMs }), /timeoutMs/);
  assert.deepEqual(world.actions, []);
});

test("a client that was closed leaves no timer behind, which would keep its process", async () => {
  const { client, world } = await connected();
  const published = client.publish("a.x", 1, { timeoutMs: 60_000 });
  await world.settle();
  assert.ok(world.timers > 0);
  client.disconnect();
  await assert.rejects(published);
  await world.settle();
  assert.equal(world.timers, 0);
});

test("a token that is no string, or empty, is none", async () => {
  for (const token of ["", undefined, null, 5, {}]) {
    const world = new World({ wallMs: 0, random: [0.5] });
    const errors = [];
    const client = new world.sdk.Client("ws://host/ws", { getToken: async () => token });
    client.on("error", ({ reason }) => errors.push(reason));
    client.connect();
    await world.settle();
    assert.deepEqual([errors, world.actions], [["no token"], []]);
  }
});

test("pings are not answered while too much waits for the socket", async () => {
  const { world } = await connected();
  for (const [bufferedAmount, answers] of [[1 << 20, 1], [(1 << 20) + 1, 0]]) {
    world.socket.bufferedAmount = bufferedAmount;
    await world.receive(frame(PING, ""));
    assert.equal(world.actions.splice(0).length, answers);
  }
});

test("subscriptions get the ticks that they match, in the order in which they were made", async () => {
  const world = new World({ wallMs: 0, random: [] });
  const client = new world.sdk.Client("ws://host/ws");
  const seen = [];
  for (const pattern of ["a.>", "a.b", "b.c", "*.b", "a.*"]) {
    client.subscribe(pattern).on("tick", ({ topic }) => seen.push([topic, pattern]));
  }
  await world.open("tickcast.v1.json");
  const send = (...messages) => world.receive(JSON.stringify(messages));
  await send({ op: "welcome", id: 1, server: "s", epoch: 1, session: 1, frame_bytes_max: 262_144, features: [] });
  const topics = ["a.b", "b.c", "c.b", "c.d"].map((topic, at) => ({ topic, topic_id: at + 1, epoch: 1 }));
  await send({ op: "subscribed", topics }, ...topics.map(({ topic }) => ({ topic, seq: 1, ts: 1, data: 1 })));
  const expected = [["a.b", "a.>"], ["a.b", "a.b"], ["a.b", "*.b"], ["a.b", "a.*"], ["b.c", "b.c"], ["c.b", "*.b"]];
  assert.deepEqual(seen, expected);
});

test("wildcards match as in NATS", async () => {
  const { sdk } = new World({ wallMs: 0, random: [] });
  const cases = [
    ["a.b", "a.b", true],
    ["a.b", "a.b.c", false],
    ["a.*", "a.b", true],
    ["a.*", "a", false],
    ["*.b", "a.b", true],
    ["a.>", "a.b.c", true],
    ["a.>", "a", false],
    [">", "a", true],
    ["a*", "ab", false],
    ["a*", "a*", true],
    ["a.*.c", "a.b.d", false],
  ];
  for (const [pattern, topic, expected] of cases) assert.equal(sdk.matches(pattern, topic), expected, pattern);
});

test("many subscriptions of one topic each are made, resumed and ended without comparing each with each", async () => {
  const count = 20_000;
  const names = Array.from({ length: count }, (_, at) => `a.${at}`);
  const world = new World({ wallMs: 0, random: [] });
  const positions = Object.fromEntries(names.map((name) => [name, { epoch: 1, sequence: 1 }]));
  const client = new world.sdk.Client("ws://host/ws", { positions });
  client.disconnect();
  // A comparison splits a name, or looks at every token of one.
  let compared = 0;
  const [{ split }, { every }] = [String.prototype, Array.prototype];
  const counted = (original) =>
    function (...words) {
      compared += 1;
      return original.apply(this, words);
    };
  [String.prototype.split, Array.prototype.every] = [counted(split), counted(every)];
  try {
    const subscriptions = names.map((name) => client.subscribe(name));
    client.connect();
    await world.open("tickcast.v1.json");
    const welcome = { op: "welcome", id: 1, server: "s", epoch: 1, session: 1, frame_bytes_max: 262_144, features: [] };
    await world.receive(JSON.stringify(welcome));
    const subscribes = world.actions.filter(({ send }) => send?.op === "subscribe");
    assert.deepEqual([subscribes.length, subscribes[7].send.from], [count, { positions: { "a.7": { epoch: 1, sequence: 1 } } }]);
    for (const subscription of subscriptions) subscription.unsubscribe();
    assert.deepEqual(client.positions, {});
  } finally {
    [String.prototype.split, Array.prototype.every] = [split, every];
  }
  assert.ok(compared < 10 * count, `${compared} comparisons`);
});
