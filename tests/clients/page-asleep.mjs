// page-asleep.mjs CHROMIUM HOST:PORT FOLDER: suspends the page until the server closes its connection, then wakes it. The
// page has to reconnect, recover the history and report what it missed.
//
// A proxy between page and server forwards nothing while the page is asleep. The server gets no answer to its pings, and the
// proxy buffers what the server sends, as the network of a sleeping machine would. Prints "end" last.
import { connect, createServer } from "node:net";
import { check, open, run, say } from "./browser.mjs";

const [executablePath, server, folder] = process.argv.slice(2);
const [host, port] = server.split(":");

/** Forwards both directions of every connection. While asleep, it buffers the server's data and does not read the page's. */
class Proxy {
  /** Promise that resolves when the server has closed the stream of the sleeping page. */
  closedByServer = null;
  #isAsleep = false;
  #pairs = new Set();
  #resolveClosed = null;
  #listener = createServer((page) => this.#accept(page));

  async listen() {
    await new Promise((done) => this.#listener.listen(0, "127.0.0.1", done));
    return `http://127.0.0.1:${this.#listener.address().port}/`;
  }

  sleep() {
    this.#isAsleep = true;
    this.closedByServer = new Promise((done) => (this.#resolveClosed = done));
    for (const { page } of this.#pairs) page.pause();
  }

  wake() {
    this.#isAsleep = false;
    for (const pair of this.#pairs) {
      pair.page.resume();
      pair.page.write(Buffer.concat(pair.buffered));
      pair.buffered = [];
      if (pair.hasEnded) pair.page.end();
    }
  }

  #accept(page) {
    const upstream = connect(Number(port), host);
    const pair = { page, buffered: [], hasEnded: false };
    // Connections that fetch files of the page end anyway; only the end of the stream counts.
    let isStream = false;
    page.once("data", (bytes) => (isStream = bytes.toString("latin1").startsWith("GET /ws")));
    this.#pairs.add(pair);
    page.on("data", (bytes) => upstream.write(bytes));
    upstream.on("data", (bytes) => (this.#isAsleep ? pair.buffered.push(bytes) : page.write(bytes)));
    upstream.on("end", () => {
      pair.hasEnded = true;
      if (!this.#isAsleep) page.end();
      else if (isStream) this.#resolveClosed();
    });
    page.on("close", () => {
      this.#pairs.delete(pair);
      upstream.destroy();
    });
    for (const socket of [page, upstream]) socket.on("error", () => page.destroy());
  }
}

await run(executablePath, async (browser) => {
  const proxy = new Proxy();
  const tab = await open(browser, await proxy.listen(), { viewport: { width: 1280, height: 900 } });
  try {
    await tab.page.goto(tab.url);
    await tab.state("live");
    await tab.until(() => Number(document.body.dataset.rows) >= 5 && Number(document.body.dataset.fps) > 0);
    proxy.sleep();
    await proxy.closedByServer;
    proxy.wake();
    await tab.until(() => document.body.dataset.state === "live" && document.body.dataset.reconnects === "1");
    await tab.tells("events", "Reconnected after");
    await tab.shot(folder, "asleep");
    const events = await tab.text("events");
    check(/[1-9][\d,]* ticks? skipped; the table shows the latest/.test(events), `ticks missed in the table: ${events}`);
    check(/ECG: [1-9]\d* batch(es)? recovered, none lost/.test(events), `batches missed in the wave: ${events}`);
    check((await tab.text("unannounced")) === "0", "no loss is unannounced");
    await tab.until(() => Number(document.body.dataset.fps) > 0);
    tab.assertQuiet();
    say("back");
  } catch (error) {
    await tab.shot(folder, "asleep-failed").catch(() => {});
    throw error;
  }
});
