// readme-snippet.mjs FILE: opens an HTML file in a headless browser and prints the first line that it logs to the console.
//
// Exit code 0: it logged one; else 1, with the reason on standard error. For scripts/readme.py.
import { readFileSync } from "node:fs";
import { GUARD_MS, launch, say } from "./browser.mjs";

const browser = await launch();
try {
  const page = await browser.newPage();
  const isLine = (message) => message.type() === "log";
  const logged = page.waitForEvent("console", { timeout: GUARD_MS, predicate: isLine });
  await page.setContent(readFileSync(process.argv[2], "utf8"));
  say((await logged).text());
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
} finally {
  await browser.close();
}
