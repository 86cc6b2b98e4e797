// shots.mjs [--empty] URL FOLDER [CHROMIUM]: takes four screenshots of the page of a running server and writes them to FOLDER:
// light-desktop.png and dark-desktop.png (1440 x 900), light-phone.png and dark-phone.png (390 x 844 at 2x).
//
// Exits with 0 if the page was live, showed ticks, fit each width and logged no error, else with 1 and the reason on standard
// error. --empty accepts a server without ticks. CHROMIUM is the browser executable; the default is the one that
// find-browser.mjs prints. Requires `npm ci --prefix tests/clients`, which scripts/test.sh runs. Takes about 20 s.
import { mkdirSync } from "node:fs";
import { check, launch, open, say } from "./browser.mjs";

const DEVICES = [
  { name: "desktop", viewport: { width: 1440, height: 900 } },
  { name: "phone", viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true },
];
/** Time for the charts and the wave to fill before the first screenshot. */
const FILL_MS = 5_000;

const args = process.argv.slice(2);
const mayBeEmpty = args[0] === "--empty";
const [url, folder, executablePath] = mayBeEmpty ? args.slice(1) : args;
if (folder === undefined) {
  console.error("usage: node tests/clients/shots.mjs [--empty] URL FOLDER [CHROMIUM]");
  process.exit(2);
}
mkdirSync(folder, { recursive: true });

let browser;
try {
  browser = await launch(executablePath);
  for (const { name, ...options } of DEVICES) {
    const tab = await open(browser, url, options);
    await tab.page.goto(url);
    await tab.state("live");
    if (!mayBeEmpty) await tab.until(() => Number(document.body.dataset.rows) > 0);
    await tab.page.waitForTimeout(FILL_MS);
    for (const colorScheme of ["light", "dark"]) {
      await tab.page.emulateMedia({ colorScheme });
      await tab.page.waitForTimeout(1_500);
      await tab.fits(name);
      await tab.shot(folder, `${colorScheme}-${name}`);
      say(`${folder}/${colorScheme}-${name}.png`);
    }
    check((await tab.text("unannounced")) === "0", "ticks were lost without an announcement");
    tab.assertQuiet();
    await tab.close();
  }
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
} finally {
  await browser?.close();
}
