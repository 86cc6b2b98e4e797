// Runs the examples against real servers. TICKCAST_BINARY is the path of the server, TICKCAST_BROWSER that of Chromium. TICKCAST_SHOTS is a folder
// for screenshots of the price board.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { extname, join } from "node:path";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { Client } from "../bundle/tickcast.js";
import { Account, next, Server } from "./server.mjs";

const root = fileURLToPath(new URL("../", import.meta.url));
const capture = fileURLToPath(new URL("../../../../tests/data/market.ndjson", import.meta.url));

/** Serves the folder of the SDK, as an application's web server would. */
async function serveFiles() {
  const types = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css" };
  const server = createServer(({ url }, response) => {
    const path = new URL(url, "http://x").pathname.replace(/\/$/, "/index.html");
    response.setHeader("Content-Type", types[extname(path)] ?? "text/plain");
    response.end(readFileSync(join(root, path)));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  server.origin = `http://127.0.0.1:${server.address().port}`;
  return server;
}

/** Runs the relay, which keeps its place in a folder. `lines` fills with what it prints. */
function startRelay(source, target, folder) {
  const words = [join(root, "examples/relay.mjs"), source.url, "in.>", target.url, "out.", join(folder, "places.json")];
  const relay = spawn(process.execPath, ["--experimental-websocket", ...words], { stdio: ["ignore", "pipe", "pipe"] });
  relay.lines = [];
  for (const output of [relay.stdout, relay.stderr]) createInterface(output).on("line", (line) => relay.lines.push(line));
  relay.exited = once(relay, "exit");
  return relay;
}

test("the relay republishes every tick in order, and goes on where it was", async () => {
  const [source, target] = [await Server.start([]), await Server.start([])];
  const folder = mkdtempSync(join(tmpdir(), "tickcast-relay-"));
  const [publisher, reader] = [new Client(source.url), new Client(target.url)];
  const copies = reader.subscribe("out.>");
  await next(copies, "subscription", ({ state }) => state === "subscribed");
  const account = new Account(copies, "out.in.a");
  const got = [];
  copies.on("tick", ({ data }) => got.push(data));
  for (let round = 0; round < 2; round += 1) {
    for (let at = 0; at < 50; at += 1) await publisher.publish("in.a", round * 100 + at);
    const relay = startRelay(source, target, folder);
    await account.until(({ last }) => last === 100 * round + 50);
    for (let at = 50; at < 100; at += 1) await publisher.publish("in.a", round * 100 + at);
    await account.until(({ last }) => last === 100 * (round + 1));
    relay.kill("SIGTERM");
    assert.deepEqual(await relay.exited, [0, null], relay.lines.join("\n"));
    assert.ok(!relay.lines.some((line) => /^(gap|dropped|not recovered)/.test(line)), relay.lines.join("\n"));
  }
  assert.deepEqual(got, Array.from({ length: 200 }, (_, at) => at));
  for (const client of [publisher, reader]) client.disconnect();
  await Promise.all([source.stop(), target.stop()]);
  rmSync(folder, { recursive: true });
});

test("the relay waits for a server that limits its rate, and says which ticks that server does not take", async () => {
  const [source, target] = [await Server.start([]), await Server.start(["--publish-rate", "50", "--frame-max", "4KiB"])];
  const folder = mkdtempSync(join(tmpdir(), "tickcast-relay-"));
  const [publisher, reader] = [new Client(source.url), new Client(target.url)];
  const copies = reader.subscribe("out.>");
  await next(copies, "subscription", ({ state }) => state === "subscribed");
  const got = new Map();
  const whole = new Promise((done) => {
    copies.on("tick", ({ topic, data }) => {
      got.set(topic, [...(got.get(topic) ?? []), data]);
      if ([...got.values()].flat().length === 160) done();
    });
  });
  const topics = Array.from({ length: 8 }, (_, at) => `in.${at}`);
  for (const topic of topics) {
    for (let at = 0; at < 20; at += 1) await publisher.publish(topic, at);
  }
  await publisher.publish("in.0", "x".repeat(8_192));
  const relay = startRelay(source, target, folder);
  const failed = relay.exited.then((exit) => Promise.reject(new Error(`it ended: ${exit}\n${relay.lines.join("\n")}`)));
  failed.catch(() => {});
  await Promise.race([whole, failed]);
  const numbers = Array.from({ length: 20 }, (_, at) => at);
  assert.deepEqual(Object.fromEntries(got), Object.fromEntries(topics.map((topic) => [`out.${topic}`, numbers])));
  while (!relay.lines.includes("too large in.0 21")) await Promise.race([once(relay.stdout, "data"), failed]);
  relay.kill("SIGTERM");
  assert.deepEqual(await relay.exited, [0, null], relay.lines.join("\n"));
  assert.equal(JSON.parse(readFileSync(join(folder, "places.json"), "utf8"))["in.0"].sequence, 21);
  for (const client of [publisher, reader]) client.disconnect();
  await Promise.all([source.stop(), target.stop()]);
  rmSync(folder, { recursive: true });
});

test("the relay stops with an error if a server ends it for good, and keeps its place", async () => {
  const folder = mkdtempSync(join(tmpdir(), "tickcast-relay-"));
  const keyFile = join(folder, "key.txt");
  writeFileSync(keyFile, `${"5a".repeat(32)}\n`, { mode: 0o600 });
  const config = join(folder, "auth.toml");
  writeFileSync(config, `[[auth.key]]\nalgorithm = "HS256"\nfile = ${JSON.stringify(keyFile)}\n`);
  const [source, target] = [await Server.start([]), await Server.start(["--config", config])];
  const publisher = new Client(source.url);
  for (let at = 0; at < 5; at += 1) await publisher.publish("in.a", at);
  for (const [from, to] of [[source, target], [target, source]]) {
    const relay = startRelay(from, to, folder);
    assert.deepEqual(await relay.exited, [1, null], relay.lines.join("\n"));
    assert.match(relay.lines.join("\n"), /^relay: /m);
    assert.deepEqual(JSON.parse(readFileSync(join(folder, "places.json"), "utf8")), {});
  }
  publisher.disconnect();
  await Promise.all([source.stop(), target.stop()]);
  rmSync(folder, { recursive: true });
});

test("the price board shows a replayed capture in light and dark, and comes back after a restart", async () => {
  const { chromium } = createRequire(new URL("../../../../tests/clients/package.json", import.meta.url))("playwright-core");
  const files = await serveFiles();
  const options = ["--replay", capture, "--loop", "--allow-origin", files.origin];
  let server = await Server.start(options);
  const browser = await chromium.launch({ executablePath: process.env.TICKCAST_BROWSER, args: ["--no-sandbox", "--disable-gpu"] });
  try {
    const shots = process.env.TICKCAST_SHOTS ?? mkdtempSync(join(tmpdir(), "tickcast-board-"));
    mkdirSync(shots, { recursive: true });
    const page = await browser.newPage({ viewport: { width: 1100, height: 640 } });
    page.setDefaultTimeout(120_000);
    const errors = [];
    page.on("pageerror", (error) => errors.push(String(error)));
    await page.goto(`${files.origin}/examples/price-board/?server=${server.url}`);
    await page.waitForFunction(() => document.querySelectorAll("#rows tr").length === 10);
    await page.waitForFunction(() => [...document.querySelectorAll("polyline")].some((line) => line.getAttribute("points").split(" ").length > 12));
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme });
      await page.screenshot({ path: join(shots, `board-${colorScheme}.png`) });
    }
    await page.setViewportSize({ width: 390, height: 760 });
    await page.screenshot({ path: join(shots, "board-phone.png") });
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(overflow <= 0, `${overflow} pixels wider than a phone`);
    const products = await page.locator("#rows th").allTextContents();
    assert.deepEqual(products, [...products].sort());
    await server.kill();
    await page.waitForFunction(() => document.getElementById("state").dataset.state === "connecting");
    server = await Server.start(options, server.http);
    await page.waitForFunction(() => document.getElementById("state").textContent === "live");
    assert.deepEqual(errors, []);
  } finally {
    await browser.close();
    files.close();
    await server.stop();
  }
});
