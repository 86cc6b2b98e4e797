// frames.mjs [--tree] [--seconds N] URL [CHROMIUM]: measures how fast the page of a running server draws. Prints one line of JSON.
//
// `fps`: frames drawn per second; `frame_ms_p99`: time between two of them; `ticks_per_second`: as the page shows it;
// `busy`: share of the time in which the page's main thread is busy. --tree takes the page's files from this tree instead
// of from the server. It speaks the DevTools protocol itself, because playwright lets the browser report every WebSocket message,
// which at 16,000 messages/s takes more than the page does. Requires `npm ci --prefix tests/clients`.
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { WebSocket } from "ws";
import { findBrowser, say } from "./browser.mjs";

const SETTLE_MS = 6_000;
const FILES = new URL("../../src/server/page/", import.meta.url);
const TYPES = { html: "text/html", css: "text/css", js: "text/javascript", svg: "image/svg+xml" };

const args = process.argv.slice(2);
const fromTree = args[0] === "--tree" && args.shift() !== undefined;
const seconds = args[0] === "--seconds" ? Number(args.splice(0, 2)[1]) : 10;
const [url, executablePath = findBrowser()] = args;
if (url === undefined || executablePath === undefined) {
  console.error("usage: node tests/clients/frames.mjs [--tree] [--seconds N] URL [CHROMIUM]");
  process.exit(2);
}

/** A connection that speaks the DevTools protocol. */
class DevTools {
  #socket;
  #calls = 0;
  #waiting = new Map();
  handlers = {};

  static async connect(address) {
    const tools = new DevTools();
    tools.#socket = new WebSocket(address);
    await new Promise((done, fail) => tools.#socket.on("open", done).on("error", fail));
    tools.#socket.on("message", (data) => {
      const { id, result, error, method, params } = JSON.parse(data);
      if (id === undefined) return tools.handlers[method]?.(params);
      const { done, fail } = tools.#waiting.get(id);
      tools.#waiting.delete(id);
      if (error === undefined) done(result);
      else fail(new Error(error.message));
    });
    return tools;
  }

  call(method, params = {}) {
    this.#calls += 1;
    this.#socket.send(JSON.stringify({ id: this.#calls, method, params }));
    return new Promise((done, fail) => this.#waiting.set(this.#calls, { done, fail }));
  }

  async evaluate(expression) {
    const { result, exceptionDetails } = await this.call("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails !== undefined) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  }
}

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/** Runs in the page: the times of all frames for `ms`. */
const framesFor = (ms) =>
  new Promise((done) => {
    const times = [];
    const next = (now) => {
      times.push(now);
      if (now - times[0] < ms) requestAnimationFrame(next);
      else done(times);
    };
    requestAnimationFrame(next);
  });

const profile = mkdtempSync(join(tmpdir(), "tickcast-frames-"));
// Files that a test fulfils have no address, from which Chromium refuses connections to loopback.
const flags = ["--disable-features=LocalNetworkAccessChecks", "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"];
const program = spawn(executablePath, [...flags, `--user-data-dir=${profile}`, "--window-size=1280,900", "about:blank"], { stdio: "ignore" });
try {
  const portFile = join(profile, "DevToolsActivePort");
  for (let waited = 0; !existsSync(portFile) && waited < 20_000; waited += 100) await sleep(100);
  await sleep(200);
  const [port] = readFileSync(portFile, "utf8").split("\n");
  const targets = await (await fetch(`http://127.0.0.1:${port}/json`)).json();
  const tools = await DevTools.connect(targets.find(({ type }) => type === "page").webSocketDebuggerUrl);
  if (fromTree) {
    tools.handlers["Fetch.requestPaused"] = ({ requestId, request }) => {
      const { pathname } = new URL(request.url);
      const name = pathname === "/" ? "index.html" : pathname.replace(/^\/page\//, "");
      const file = new URL(name, FILES);
      if (!existsSync(file)) return tools.call("Fetch.continueRequest", { requestId });
      const responseHeaders = [{ name: "Content-Type", value: TYPES[name.split(".").at(-1)] }];
      return tools.call("Fetch.fulfillRequest", { requestId, responseCode: 200, responseHeaders, body: readFileSync(file).toString("base64") });
    };
    await tools.call("Fetch.enable");
  }
  await tools.call("Page.navigate", { url });
  await sleep(SETTLE_MS);
  if (fromTree) await tools.call("Fetch.disable");
  await tools.call("Performance.enable");
  const busySeconds = async () => (await tools.call("Performance.getMetrics")).metrics.find(({ name }) => name === "TaskDuration").value;
  const [busyBefore, startedAt] = [await busySeconds(), performance.now()];
  const times = await tools.evaluate(`(${framesFor})(${seconds * 1e3})`);
  const busy = ((await busySeconds()) - busyBefore) / ((performance.now() - startedAt) / 1e3);
  const shown = await tools.evaluate(`["ticks", "latency", "conflated", "unannounced"].map((id) => document.getElementById(id).textContent)`);
  const gaps = times.slice(1).map((time, at) => time - times[at]).sort((a, b) => a - b);
  const spanned = (times.at(-1) - times[0]) / 1e3;
  say(
    JSON.stringify({
      fps: +((times.length - 1) / spanned).toFixed(1),
      frame_ms_p99: +gaps[Math.floor(gaps.length * 0.99)].toFixed(1),
      busy: +busy.toFixed(2),
      ticks_per_second: shown[0],
      latency: shown[1],
      conflated: shown[2],
      unannounced: shown[3],
    }),
  );
} finally {
  program.kill();
  await new Promise((done) => program.on("exit", done));
  rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
}
