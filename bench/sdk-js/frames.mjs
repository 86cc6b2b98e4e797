// frames.mjs SERVER CHROMIUM [SECONDS] [JOIN_MS]: how smoothly a page draws while the JavaScript SDK decodes 50,000 ticks a second.
//
// SERVER is the path of tickcast, CHROMIUM that of the browser. The server's simulator feeds 500 topics as native frames. The page parses every payload and, in each
// frame, writes the last values of 100 topics into a table. The server sends one tick per message, and Chromium spends more on a message than the SDK on a tick; with
// JOIN_MS, a relay joins the frames of so many milliseconds into one message, which the protocol allows. Prints frames, ticks and the browser's time.
// Needs `npm ci --prefix tests/clients`, and a machine with two idle cores: the server, the page and the browser share them.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { loadavg, cpus } from "node:os";
import { createInterface } from "node:readline";

const require = createRequire(new URL("../../tests/clients/package.json", import.meta.url));
const { chromium } = require("playwright-core");
const { WebSocket, WebSocketServer } = require("ws");

const PRODUCERS = 500;
const RATE = 100;
const WARM_UP_S = 3;

const [binary, executablePath, seconds = "20", joinMs = "0"] = process.argv.slice(2);
if (executablePath === undefined) {
  console.error("usage: node bench/sdk-js/frames.mjs SERVER CHROMIUM [SECONDS] [JOIN_MS]");
  process.exit(2);
}

/** A WebSocket server in front of another, which joins messages; returns its address. */
async function relay(url) {
  const server = new WebSocketServer({ port: 0, host: "127.0.0.1", handleProtocols: ([protocol]) => protocol });
  server.on("connection", (near, { headers }) => {
    const far = new WebSocket(url, headers["sec-websocket-protocol"], { perMessageDeflate: false });
    const early = [];
    near.on("message", (data) => (far.readyState === WebSocket.OPEN ? far.send(data) : early.push(data)));
    far.on("open", () => early.forEach((data) => far.send(data)));
    let frames = [];
    far.on("message", (data) => frames.push(data));
    const join = setInterval(() => {
      if (frames.length === 0 || near.bufferedAmount > 1 << 20) return;
      near.send(Buffer.concat(frames));
      frames = [];
    }, Number(joinMs));
    near.on("close", () => {
      clearInterval(join);
      far.terminate();
    });
  });
  await once(server, "listening");
  return `ws://127.0.0.1:${server.address().port}/ws`;
}

const listeners = ["--tcp", "127.0.0.1:0", "--http", "127.0.0.1:0", "--no-admin", "--shards", "1"];
const feed = ["--sim-producers", String(PRODUCERS), "--sim-topics", String(PRODUCERS), "--sim-rate", String(RATE)];
const server = spawn(binary, ["serve", ...listeners, ...feed], { stdio: ["ignore", "pipe", "ignore"] });
const [line] = await once(createInterface(server.stdout), "line");
const http = /http=(\S+)/.exec(line)[1];
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"] });
try {
  const page = await browser.newPage();
  const body = readFileSync(new URL("../../src/sdk/js/bundle/tickcast.js", import.meta.url), "utf8");
  // The working tree's SDK, whatever the server's version.
  await page.route("**/tickcast.js", (route) => route.fulfill({ body, contentType: "text/javascript" }));
  await page.goto(`http://${http}/nothing`);
  const devtools = await page.context().newCDPSession(page);
  // The thread's CPU time: on a busy machine, wall time would count what others do.
  await devtools.send("Performance.enable", { timeDomain: "threadTicks" });
  const metrics = async () => {
    const { metrics } = await devtools.send("Performance.getMetrics");
    return Object.fromEntries(metrics.map(({ name, value }) => [name, value]));
  };
  const url = Number(joinMs) > 0 ? await relay(`ws://${http}/ws`) : "/ws";
  await page.evaluate(async (url) => {
    const { Client } = await import("/tickcast.js");
    // A fixed layout: without it, each text would lay out the whole table anew.
    document.body.innerHTML = "<style>table { table-layout: fixed; width: 20rem } td { contain: strict; height: 1.2rem }</style><table></table>";
    const table = document.querySelector("table");
    const cells = Array.from({ length: 100 }, (_, at) => {
      const row = table.insertRow();
      row.insertCell().textContent = `sim.${at}`;
      return row.insertCell();
    });
    const lasts = new Map();
    const counts = { ticks: 0, lost: 0, conflated: 0 };
    const client = new Client(url, { codec: "native" });
    const ticks = client.subscribe("sim.>", { policy: "conflate" });
    ticks.on("tick", (tick) => {
      counts.ticks += 1;
      lasts.set(tick.topic, tick.data);
    });
    ticks.on("gap", ({ count }) => (counts.lost += count));
    ticks.on("conflated", ({ count }) => (counts.conflated += count));
    const frames = [];
    const draw = (now) => {
      frames.push(now);
      cells.forEach((cell, at) => (cell.textContent = lasts.get(`sim.${at}`)?.n ?? ""));
      requestAnimationFrame(draw);
    };
    requestAnimationFrame(draw);
    globalThis.bench = { counts, frames };
  }, url);
  await page.waitForTimeout(WARM_UP_S * 1_000);
  const before = await metrics();
  const load = loadavg()[0];
  await page.evaluate(() => {
    Object.assign(bench.counts, { ticks: 0, lost: 0, conflated: 0, from: performance.now() });
    bench.frames.length = 0;
  });
  await page.waitForTimeout(Number(seconds) * 1_000);
  const { counts, frames, elapsed } = await page.evaluate(() => ({ ...bench, elapsed: performance.now() - bench.counts.from }));
  const after = await metrics();
  const times = frames.slice(1).map((at, index) => at - frames[index]);
  times.sort((a, b) => a - b);
  const quantile = (q) => times[Math.min(times.length - 1, Math.floor(q * times.length))];
  const cpuS = (name) => after[name] - before[name];
  const busy = (name) => `${((cpuS(name) / (elapsed / 1_000)) * 100).toFixed(0)} %`;
  console.log(`machine    ${cpus().length} x ${cpus()[0].model}, load ${load.toFixed(1)} before the window`);
  console.log(`browser    ${browser.version()}, ${Number(joinMs) > 0 ? `messages joined for ${joinMs} ms` : "one tick a message"}, ${(elapsed / 1_000).toFixed(1)} s`);
  console.log(`ticks/s    ${Math.round(counts.ticks / (elapsed / 1_000))} of ${PRODUCERS * RATE}; ${counts.conflated} conflated, ${counts.lost} lost`);
  console.log(`frames     ${times.length}; median ${(1_000 / quantile(0.5)).toFixed(1)} fps; p50 ${quantile(0.5).toFixed(1)} ms, p99 ${quantile(0.99).toFixed(1)} ms, max ${times.at(-1).toFixed(1)} ms`);
  const perTick = (name) => ((cpuS(name) / counts.ticks) * 1e6).toFixed(1);
  console.log(`main thread ${busy("TaskDuration")} busy, ${busy("ScriptDuration")} in scripts, ${busy("LayoutDuration")} in layout`);
  console.log(`a tick     ${perTick("TaskDuration")} us of the main thread's CPU time, ${perTick("ScriptDuration")} us in scripts`);
} finally {
  await browser.close();
  server.kill();
}
process.exit();
