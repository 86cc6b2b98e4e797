// The stock socket.io-client in Chromium, with its default transports: socketio-browser.mjs HOST:PORT BROWSER.
import assert from "node:assert/strict";
import { launch } from "./browser.mjs";

const [address, executablePath] = process.argv.slice(2);
const browser = await launch(executablePath);
try {
  const context = await browser.newContext({ bypassCSP: true });
  const page = await context.newPage();
  await page.goto(`http://${address}/`);
  await page.addScriptTag({ path: new URL("node_modules/socket.io-client/dist/socket.io.min.js", import.meta.url).pathname });
  const seen = await page.evaluate(async () => {
    const socket = globalThis.io({ forceNew: true });
    const ticks = [];
    socket.on("tick", ({ seq, data }) => ticks.push([seq, data instanceof ArrayBuffer ? [...new Uint8Array(data)] : data]));
    await new Promise((resolve) => socket.on("connect", resolve));
    const engine = socket.io.engine;
    if (engine.transport.name !== "websocket") await new Promise((resolve) => engine.once("upgrade", resolve));
    const answers = [];
    answers.push((await socket.emitWithAck("subscribe", "page.*")).op);
    answers.push((await socket.emitWithAck("publish", "page.a", { text: "\u{20ac}" })).op);
    answers.push((await socket.emitWithAck("publish", "page.a", new Uint8Array([0, 30, 255]))).op);
    while (ticks.length < 2) await new Promise((resolve) => setTimeout(resolve, 10));
    socket.disconnect();
    return { transport: engine.transport.name, answers, ticks };
  });
  assert.deepEqual(seen, {
    transport: "websocket",
    answers: ["subscribed", "published", "published"],
    ticks: [
      [1, { text: "\u{20ac}" }],
      [2, [0, 30, 255]],
    ],
  });
} finally {
  await browser.close();
}
console.log("end");
