// page-tls.mjs CHROMIUM URL FOLDER: opens the page over https with a certificate of an authority that the browser does not know, and
// waits until rows arrive over wss. Prints "live", then "end" last.
import { check, open, run, say } from "./browser.mjs";

const [executablePath, url] = process.argv.slice(2);

await run(executablePath, async (browser) => {
  const tab = await open(browser, url, { ignoreHTTPSErrors: true });
  const sockets = [];
  tab.page.on("websocket", (socket) => sockets.push(socket.url()));
  await tab.page.goto(tab.url);
  await tab.state("live");
  await tab.until(() => Number(document.body.dataset.rows) >= 5);
  check((await tab.text("unannounced")) === "0", "no loss is unannounced");
  check(sockets.length > 0 && sockets.every((socket) => socket.startsWith("wss://")), `sockets: ${sockets}`);
  tab.assertQuiet();
  say("live");
});
