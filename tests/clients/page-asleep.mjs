// page-asleep.mjs CHROMIUM HOST:PORT FOLDER: a browser that sleeps until the server has given it up, and wakes: it comes back,
// recovers, and tells what it missed.
//
// Between it and the server is a proxy that passes nothing on while the page is asleep: the server hears no answer to its
// pings, and the proxy keeps what it sends, as a sleeping machine's network would. "end" last.
import { connect, createServer } from "node:net";
import { check, open, run, say } from "./browser.mjs";

const [executablePath, server, folder] = process.argv.slice(2);
const [host, port] = server.split(":");

/** Both ways of every connection; asleep, what comes from the server is kept and what comes from the page is not read. */
class Proxy {
  /** Resolved when the server has ended a connection that was put to sleep. */
  givenUp = null;
  #isAsleep = false;
  #pairs = new Set();
  #tell = null;
  #listener = createServer((page) => this.#accept(page));

  async listen() {
    await new Promise((done) => this.#listener.listen(0, "127.0.0.1", done));
    return `http://127.0.0.1:${this.#listener.address().port}/`;
  }

  sleep() {
    this.#isAsleep = true;
    this.givenUp = new Promise((done) => (this.#tell = done));
    for (const { page } of this.#pairs) page.pause();
  }

  wake() {
    this.#isAsleep = false;
    for (const pair of this.#pairs) {
      pair.page.resume();
      pair.page.write(Buffer.concat(pair.kept));
      pair.kept = [];
      if (pair.hasEnded) pair.page.end();
    }
  }

  #accept(page) {
    const upstream = connect(Number(port), host);
    const pair = { page, kept: [], hasEnded: false };
    // Files of the page have connections of their own, which end by themselves.
    let isStream = false;
    page.once("data", (bytes) => (isStream = bytes.toString("latin1").startsWith("GET /ws")));
    this.#pairs.add(pair);
    page.on("data", (bytes) => upstream.write(bytes));
    upstream.on("data", (bytes) => (this.#isAsleep ? pair.kept.push(bytes) : page.write(bytes)));
    upstream.on("end", () => {
      pair.hasEnded = true;
      if (!this.#isAsleep) page.end();
      else if (isStream) this.#tell();
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
    await proxy.givenUp;
    proxy.wake();
    await tab.until(() => document.body.dataset.state === "live" && document.body.dataset.reconnects === "1");
    await tab.tells("events", "Back after");
    await tab.shot(folder, "asleep");
    const told = await tab.text("events");
    check(/[1-9][\d,]* ticks? of the table skipped/.test(told), `what was missed of the table: ${told}`);
    check(/Wave: [1-9]\d* batch(es)? made up for, none lost/.test(told), `what was missed of the wave: ${told}`);
    check((await tab.text("unannounced")) === "0", "nothing is lost in silence");
    await tab.until(() => Number(document.body.dataset.fps) > 0);
    tab.assertQuiet();
    say("back");
  } catch (error) {
    await tab.shot(folder, "asleep-failed").catch(() => {});
    throw error;
  }
});
