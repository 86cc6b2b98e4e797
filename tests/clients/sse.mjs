// sse.mjs ADDRESS SERVER [BROWSER]: an EventSource that reads `t.*` from ADDRESS, which may be a proxy's, while this program publishes
// to SERVER with fetch. Its connection is cut again and again, and "restart" waits until the caller has restarted the server ("go"
// on standard input). Without a browser, a reader in Node does what an EventSource does. Prints "cut", "restart" and "end".
import net from "node:net";
import { createInterface } from "node:readline";
import { check, open, launch, say } from "./browser.mjs";

const [address, server, executablePath] = process.argv.slice(2);
const TOPICS = ["t.a", "t.b"];
const CUTS = 5;
const TICKS = 40;

/** A TCP proxy whose connections can be cut: what is on the way is lost. */
const cuttable = new Set();
const proxy = net.createServer((client) => {
  const [host, port] = address.split(":");
  const upstream = net.connect(Number(port), host);
  for (const [from, to] of [[client, upstream], [upstream, client]]) {
    from.on("data", (bytes) => to.write(bytes));
    from.on("error", () => {});
    from.on("close", () => to.destroy());
    cuttable.add(from);
  }
});
await new Promise((done) => proxy.listen(0, "127.0.0.1", done));
const url = `http://127.0.0.1:${proxy.address().port}`;
function cut() {
  for (const socket of cuttable) socket.resetAndDestroy();
  cuttable.clear();
}

/** What an EventSource does, as far as the standard says it, on fetch. */
class Reader {
  events = [];
  #id = "";
  #retryMs = 3_000;

  async run(path) {
    for (;;) {
      try {
        const headers = { Accept: "text/event-stream", ...(this.#id && { "Last-Event-ID": this.#id }) };
        const response = await fetch(url + path, { headers });
        if (response.status !== 200) throw new TypeError(`status ${response.status}`);
        await this.#read(response.body.pipeThrough(new TextDecoderStream()));
      } catch {
        // The connection is gone, or there is no server: as an EventSource, try again.
      }
      await new Promise((done) => setTimeout(done, this.#retryMs));
    }
  }

  async #read(text) {
    let buffer = "";
    let [name, data, id] = ["", [], this.#id];
    for await (const piece of text) {
      const lines = (buffer + piece).split("\n");
      buffer = lines.pop();
      for (const line of lines) {
        const [field, value = ""] = line.split(/:(?: ?)(.*)/s, 2);
        if (line === "") {
          this.#id = id;
          if (data.length > 0) this.events.push({ name: name || "message", data: data.join("\n") });
          [name, data] = ["", []];
        } else if (field === "event") name = value;
        else if (field === "data") data.push(value);
        else if (field === "id") id = value;
        else if (field === "retry") this.#retryMs = Number(value);
      }
    }
  }
}

let take;
let browser;
const path = `/sse?topics=${TOPICS.join(",")}`;
if (executablePath === undefined) {
  const reader = new Reader();
  reader.run(path);
  take = () => reader.events.splice(0);
} else {
  browser = await launch(executablePath);
  const tab = await open(browser, url);
  // Only for the origin: there is nothing.
  await tab.page.goto(`${url}/nothing`);
  await tab.page.evaluate((path) => {
    globalThis.events = [];
    const source = new EventSource(path);
    for (const name of ["tick", "gap", "conflated", "recovered", "subscribed", "closing", "message"]) {
      source.addEventListener(name, ({ data }) => events.push({ name, data }));
    }
  }, path);
  take = () => tab.page.evaluate(() => events.splice(0));
}

const events = [];
async function until(fulfils, what) {
  const end = Date.now() + 60_000;
  for (;;) {
    events.push(...(await take()));
    if (fulfils()) return;
    check(Date.now() < end, `waited in vain for ${what}: ${JSON.stringify(events.slice(-5))}`);
    await new Promise((done) => setTimeout(done, 20));
  }
}
/** Sequences of a topic, in order. A tick whose connection was cut before the id that follows it may come again. */
const sequences = (topic) => {
  const ticks = events.filter(({ name }) => name === "tick").map(({ data }) => JSON.parse(data));
  return [...new Set(ticks.filter((tick) => tick.topic === topic).map(({ seq }) => seq))];
};
const named = (wanted) => events.filter(({ name }) => name === wanted);

let published = 0;
async function publish(count) {
  for (let n = 0; n < count; n += 1) {
    published += 1;
    const body = JSON.stringify(TOPICS.map((topic) => ({ topic, data: { n: published } })));
    const headers = { "Content-Type": "application/json" };
    const response = await fetch(`http://${server}/v1/publish`, { method: "POST", headers, body });
    check(response.status === 200, `publish: ${response.status} ${await response.clone().text()}`);
    const { results } = await response.json();
    check(results.every(({ sequence }) => sequence === published), `published ${JSON.stringify(results)}`);
  }
}
const whole = () => TOPICS.every((topic) => sequences(topic).length >= published);
function checkWhole() {
  for (const topic of TOPICS) {
    const found = sequences(topic);
    check(found.every((sequence, at) => sequence === at + 1), `${topic}: ${found}`);
  }
  check(named("gap").length === 0 && named("conflated").length === 0, "nothing is lost");
}

await until(() => named("subscribed").length >= TOPICS.length, "the subscriptions");
await publish(5);
await until(whole, "the first ticks");
for (let round = 0; round < CUTS; round += 1) {
  const during = publish(TICKS);
  await new Promise((done) => setTimeout(done, 5 * round));
  cut();
  say("cut");
  await during;
  await until(whole, `the ticks around cut ${round}`);
  checkWhole();
}
check(named("recovered").every(({ data }) => JSON.parse(data).recovered), "each cut was recovered");

// A restart: the topics begin another life, which the reader is told, and it gets all of it.
say("restart");
await new Promise((done) => createInterface({ input: process.stdin }).once("line", done));
events.length = 0;
published = 0;
await publish(3);
await until(whole, "the ticks after the restart");
checkWhole();
const told = named("recovered").map(({ data }) => JSON.parse(data));
check(TOPICS.every((topic) => told.some((one) => one.topic === topic && !one.recovered)), `told ${JSON.stringify(told)}`);
await browser?.close();
say("end");
process.exit(0);
