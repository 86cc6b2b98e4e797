// The SDK against a real server: cuts, restarts, slow links, tokens that expire. TICKCAST_BINARY is the path of the server.
import assert from "node:assert/strict";
import { createHmac, randomBytes } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { Client, ClosedError, PublishError } from "../bundle/tickcast.js";
import { Account, Link, next, Server } from "./server.mjs";

/** Longest wait for an acknowledgement, also over a restart of the server on a busy machine. */
const TIMEOUT_MS = 170_000;

/** Publishes `count` ticks and waits until the server has all of them. */
async function publish(client, topic, count, data = (at) => ({ at })) {
  const results = [];
  for (let at = 0; at < count; ) {
    const one = (_, index) => client.publish(topic, data(at + index), { timeoutMs: TIMEOUT_MS });
    const batch = Array.from({ length: Math.min(500, count - at) }, one);
    results.push(...(await Promise.all(batch)));
    at += batch.length;
  }
  return results;
}

/** A client that is connected. */
async function connect(url, options) {
  const client = new Client(url, options);
  const connected = next(client, "state", ({ state }) => state === "connected");
  client.connect();
  await connected;
  return client;
}

const subscribed = (subscription) => next(subscription, "subscription", ({ state }) => state === "subscribed");

for (const codec of ["json", "native"]) {
  test(`${codec}: ticks of all kinds arrive as they were published`, async () => {
    const server = await Server.start([]);
    const client = new Client(server.url, { codec });
    const subscription = client.subscribe("kinds.>");
    await subscribed(subscription);
    const ticks = subscription.ticks();
    const first = await client.publish("kinds.a", { text: "é", list: [1, null] }, { key: 7, timeNs: 1_000 });
    assert.deepEqual([first.topic, first.sequence, first.duplicate], ["kinds.a", 1, false]);
    await client.publish("kinds.a", new Uint8Array([0, 255, 3]), { key: 2n ** 64n - 1n });
    await client.publish("kinds.a", null);
    const got = [];
    for await (const { topic, epoch, sequence, key, timeNs, data } of ticks) {
      got.push({ topic, epoch, sequence, key, data, ...(sequence === 1 ? { timeNs } : {}) });
      if (got.length === 3) break;
    }
    const { epoch } = first;
    assert.deepEqual(got, [
      { topic: "kinds.a", epoch, sequence: 1, key: 7, data: { text: "é", list: [1, null] }, timeNs: 1_000 },
      { topic: "kinds.a", epoch, sequence: 2, key: "18446744073709551615", data: new Uint8Array([0, 255, 3]) },
      { topic: "kinds.a", epoch, sequence: 3, key: 0, data: null },
    ]);
    await assert.rejects(client.publish("bad..topic", 1), (error) => error instanceof PublishError && error.code === 101);
    for (const options of [{ key: -1 }, { key: 2n ** 64n }, { schema: 0.5 }, { timeNs: -1 }]) {
      await assert.rejects(client.publish("kinds.a", 1, options), RangeError);
    }
    await assert.rejects(client.publish("kinds.a", undefined), TypeError);
    const refused = client.subscribe("bad..pattern");
    await assert.rejects(refused.ticks().next(), (error) => error instanceof ClosedError && error.code === 102);
    client.disconnect();
    await server.stop();
  });

  test(`${codec}: nothing is missed over cuts of the connection`, async () => {
    const server = await Server.start(["--history", "100000:8MiB:0"]);
    const link = await Link.open(server.port);
    const publisher = await connect(server.url, { codec });
    const client = new Client(link.url, { codec });
    const subscription = client.subscribe("cut.>");
    const account = new Account(subscription, "cut.a");
    await subscribed(subscription);
    for (let cut = 1; cut <= 3; cut += 1) {
      await publish(publisher, "cut.a", 700);
      await account.until(({ last }) => last === 1_400 * (cut - 1) + 700);
      const back = subscribed(subscription);
      link.cut();
      await publish(publisher, "cut.a", 700);
      await back;
      await account.until(({ last }) => last === 1_400 * cut);
    }
    assert.deepEqual([account.delivered, account.gap, account.conflated], [4_200, 0, 0]);
    assert.deepEqual(account.recovered.map(({ recovered }) => recovered), [true, true, true]);
    link.close();
    client.disconnect();
    publisher.disconnect();
    await server.stop();
  });

  test(`${codec}: after a kill and after a stop of the server, the loss is reported and the new life arrives whole`, async () => {
    let server = await Server.start([]);
    const { http } = server;
    const client = new Client(server.url, { codec });
    const subscription = client.subscribe("life.>");
    const account = new Account(subscription, "life.a");
    await subscribed(subscription);
    await publish(client, "life.a", 10);
    await account.until(({ last }) => last === 10);
    for (const [end, code] of [["kill", 1006], ["stop", 3001]]) {
      const lost = next(client, "state", ({ state }) => state === "connecting");
      await server[end]();
      // Deno says 0 where there was no close frame.
      assert.equal((await lost).code || 1006, code);
      server = await Server.start([], http);
      // Waits in the offline queue, or for the acknowledgement.
      const [{ epoch }] = await publish(client, "life.a", 1, () => "first");
      await account.until(({ recovered }) => recovered.length > 0);
      const { recovered, reason } = account.recovered.shift();
      assert.deepEqual([recovered, ["epoch", "unknown_topic"].includes(reason)], [false, true], reason);
      await publish(client, "life.a", 9);
      await account.until(({ last }) => last === 10);
      assert.deepEqual(client.positions, { "life.a": { epoch, sequence: 10 } });
    }
    assert.deepEqual([account.delivered, account.gap], [30, 0]);
    client.disconnect();
    await server.stop();
  });

  test(`${codec}: over a link that stops, ticks are conflated and each is accounted for`, async () => {
    const options = ["--behind-size", "16KiB", "--socket-send-buffer", "4KiB", "--notsent-lowat", "4KiB"];
    const server = await Server.start([...options, "--stall-deadline", "10m", "--ping-interval", "0"]);
    const link = await Link.open(server.port);
    const publisher = await connect(server.url, { codec });
    const client = new Client(link.url, { codec });
    const subscription = client.subscribe("slow.>", { policy: "conflate" });
    const account = new Account(subscription, "slow.a");
    const view = subscription.keyed();
    await subscribed(subscription);
    await publish(publisher, "slow.a", 1);
    await account.until(({ last }) => last === 1);
    link.stop();
    // More than the buffers between hold. If the machine is so busy that the client gives up the silent link, it comes back with the
    // last value, and announces the rest as conflated itself.
    const pad = "x".repeat(1_000);
    await publish(publisher, "slow.a", 5_000, (at) => ({ at, pad }));
    link.go();
    const published = 5_001;
    await account.until(({ last }) => last === published);
    assert.equal(account.total, published);
    assert.ok(account.conflated > 0 && account.gap === 0, `${account.conflated} conflated`);
    assert.equal(view.get("slow.a").at, 4_999);
    link.close();
    client.disconnect();
    publisher.disconnect();
    await server.stop();
  });

  test(`${codec}: a token of five seconds is replaced in place, and the subscription goes on`, async () => {
    const folder = mkdtempSync(join(tmpdir(), "tickcast-sdk-"));
    const key = randomBytes(32).toString("hex");
    const keyFile = join(folder, "key.txt");
    writeFileSync(keyFile, `${key}\n`, { mode: 0o600 });
    const config = join(folder, "auth.toml");
    writeFileSync(config, `[auth]\nleeway = "0s"\n[[auth.key]]\nalgorithm = "HS256"\nfile = ${JSON.stringify(keyFile)}\n`);
    const server = await Server.start(["--config", config]);
    const encoded = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
    const token = () => {
      const now = Math.floor(Date.now() / 1000);
      const claims = { sub: "sdk", iat: now, exp: now + 5, tickcast: { sub: { allow: [">"] }, pub: { allow: [">"] } } };
      const signed = `${encoded({ alg: "HS256", typ: "JWT" })}.${encoded(claims)}`;
      return `${signed}.${createHmac("sha256", key).update(signed).digest("base64url")}`;
    };
    const asked = [];
    const states = [];
    const client = new Client(server.url, {
      codec,
      getToken: async (why) => {
        asked.push(why);
        return token();
      },
    });
    client.on("state", ({ state }) => states.push(state));
    const subscription = client.subscribe("t.>");
    const account = new Account(subscription, "t.a");
    await subscribed(subscription);
    for (let refresh = 1; refresh <= 3; refresh += 1) {
      await next(client, "expires", ({ expiresInS }) => expiresInS > 0);
      await publish(client, "t.a", 10);
    }
    await account.until(({ last }) => last === 30);
    assert.equal(account.delivered, 30);
    assert.deepEqual(asked.slice(0, 3), ["connect", "refresh", "refresh"]);
    assert.deepEqual(states, ["connecting", "connected"]);
    // Without a new token the server ends the session, and the client asks for one.
    client.disconnect();
    const once = new Client(server.url, { codec, token: token() });
    const refused = next(once, "state", ({ state }) => state === "disconnected");
    once.connect();
    assert.equal((await refused).code, 3005);
    await server.stop();
    rmSync(folder, { recursive: true });
  });
}

test("a reader that does not keep up learns how many ticks its queue dropped", async () => {
  const server = await Server.start([]);
  const client = new Client(server.url);
  const subscription = client.subscribe("fast.>");
  await subscribed(subscription);
  const account = new Account(subscription, "fast.a");
  const events = subscription.events({ queueMax: 10 });
  const ticks = subscription.ticks({ queueMax: 10 });
  await publish(client, "fast.a", 100);
  await account.until(({ last }) => last === 100);
  const lagged = next(subscription, "lagged");
  assert.equal((await ticks.next()).value.sequence, 91);
  assert.equal((await lagged).dropped, 90);
  assert.deepEqual((await events.next()).value, { type: "lagged", dropped: 90 });
  assert.equal((await events.next()).value.sequence, 91);
  subscription.unsubscribe();
  let left = 0;
  for await (const tick of ticks) left += tick.sequence === 0 ? 0 : 1;
  assert.equal(left, 9);
  client.disconnect();
  await server.stop();
});
