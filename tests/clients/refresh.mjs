// refresh.mjs CHROMIUM URL KEY SECONDS REFRESHES: a page that subscribes with a token of SECONDS and replaces it whenever the server says
// that it expires soon, until it has done so REFRESHES times. Prints "subscribed", "refreshed N" for each, then the first and the
// last sequence of the topic, and "end".
import { createHmac } from "node:crypto";
import { readFileSync } from "node:fs";
import { check, open, run, say } from "./browser.mjs";

const [executablePath, url, keyFile, seconds, refreshes] = process.argv.slice(2);

const encoded = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");

/** A JWT that allows its subject everything. */
function token() {
  const now = Math.floor(Date.now() / 1000);
  const permissions = { sub: { allow: [">"] }, pub: { allow: [] } };
  const claims = { sub: "browser", iat: now, exp: now + Number(seconds), tickcast: permissions };
  const signed = `${encoded({ alg: "HS256", typ: "JWT" })}.${encoded(claims)}`;
  const key = readFileSync(keyFile, "utf8").trim();
  return `${signed}.${createHmac("sha256", key).update(signed).digest("base64url")}`;
}

await run(executablePath, async (browser) => {
  const tab = await open(browser, url);
  await tab.page.exposeFunction("token", token);
  await tab.page.exposeFunction("say", say);
  // Only for the origin: there is nothing.
  await tab.page.goto(`${url}nothing`);
  const { sequences, losses, closed } = await tab.page.evaluate(async (refreshes) => {
    const socket = new WebSocket("/ws", ["tickcast.v1.json", `bearer.${await token()}`]);
    const sequences = [];
    const losses = [];
    let refreshed = 0;
    const closed = await new Promise((done) => {
      socket.onclose = ({ code, reason }) => done(`${code} ${reason}`);
      socket.onopen = () => {
        socket.send(JSON.stringify({ op: "hello", id: 1, name: "browser", features: ["tokens"] }));
        socket.send(JSON.stringify({ op: "subscribe", id: 2, topics: ["t"] }));
      };
      socket.onmessage = async ({ data }) => {
        const message = JSON.parse(data);
        if (message.seq !== undefined && message.op === undefined) sequences.push(message.seq);
        else if (message.op === "subscribed") message.id === 2 && say("subscribed");
        else if (message.op === "expires" && message.id === 0) {
          socket.send(JSON.stringify({ op: "refresh", id: 3, token: await token() }));
        } else if (message.op === "expires" && message.id === 3) {
          refreshed += 1;
          say(`refreshed ${refreshed}`);
          if (refreshed === refreshes) socket.close(1000, "enough");
        } else if (message.op !== "welcome" && message.id !== 1) losses.push(data);
      };
    });
    return { sequences, losses, closed };
  }, Number(refreshes));
  check(losses.length === 0, `messages: ${losses}`);
  check(closed.startsWith("1000 "), `closed with ${closed}`);
  for (let at = 1; at < sequences.length; at += 1) {
    check(sequences[at] === sequences[at - 1] + 1, `${sequences[at]} after ${sequences[at - 1]}`);
  }
  check(sequences.length > 0, "no ticks");
  say(`whole from ${sequences[0]} to ${sequences.at(-1)}`);
});
