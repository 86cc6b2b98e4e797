// shots.mjs URL FOLDER [CHROMIUM]: four screenshots of the page at URL, of a server that runs, into FOLDER:
// light-desktop.png, dark-desktop.png (1440 x 900), light-phone.png and dark-phone.png (390 x 844, twice as many pixels).
//
// Exit code 0: the page was live, showed ticks, lay within each width and logged no error; else 1, with the reason on
// standard error. With --empty before URL the server need not have a tick. CHROMIUM is the browser's program; without it the
// one that find-browser.mjs prints. Needs `npm ci --prefix tests/clients` once (scripts/test.sh does it). About 20 s.
import { mkdirSync } from "node:fs";
import { check, launch, open, say } from "./browser.mjs";

const WIDTHS = [
  { name: "desktop", viewport: { width: 1440, height: 900 } },
  { name: "phone", viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true },
];
/** So long the curves and the wave grow before the first picture. */
const LOOKED_AT_MS = 5_000;

const words = process.argv.slice(2);
const mayBeEmpty = words[0] === "--empty";
const [url, folder, executablePath] = mayBeEmpty ? words.slice(1) : words;
if (folder === undefined) {
  console.error("usage: node tests/clients/shots.mjs [--empty] URL FOLDER [CHROMIUM]");
  process.exit(2);
}
mkdirSync(folder, { recursive: true });

let browser;
try {
  browser = await launch(executablePath);
  for (const { name, ...options } of WIDTHS) {
    const tab = await open(browser, url, options);
    await tab.page.goto(url);
    await tab.state("live");
    if (!mayBeEmpty) await tab.until(() => Number(document.body.dataset.rows) > 0);
    await tab.page.waitForTimeout(LOOKED_AT_MS);
    for (const colorScheme of ["light", "dark"]) {
      await tab.page.emulateMedia({ colorScheme });
      await tab.page.waitForTimeout(1_500);
      await tab.fits(name);
      await tab.shot(folder, `${colorScheme}-${name}`);
      say(`${folder}/${colorScheme}-${name}.png`);
    }
    check((await tab.text("unannounced")) === "0", "ticks were lost in silence");
    tab.assertQuiet();
    await tab.close();
  }
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
} finally {
  await browser?.close();
}
