// page.mjs CHROMIUM URL FOLDER: opens the page in a headless browser and checks what it shows, for the integration tests.
//
// Prints "live" once rows and wave have changed, the page has been paused and resumed, and its screenshots are in FOLDER;
// "lost" once the page has noticed that the server is gone; "back" once it has reconnected; "end" last. An error that the
// page logs fails the test.
import { check, open, run, say } from "./browser.mjs";

const [executablePath, url, folder] = process.argv.slice(2);
const SIZE = { width: 1280, height: 900 };

const valuesOf = () => [...document.querySelectorAll(".row:not([hidden]) .value")].map((cell) => cell.textContent).join();
const pixelsOf = () => {
  const canvas = document.getElementById("wave");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let hash = 0;
  let inked = 0;
  for (let at = 3; at < data.length; at += 4) {
    hash = (hash * 31 + data[at]) | 0;
    inked += data[at] > 0 ? 1 : 0;
  }
  return { hash, inked };
};

/** Waits until the values in the rows and the pixels of the wave change. */
async function updates(tab) {
  const { page } = tab;
  await tab.until(() => Number(document.body.dataset.rows) >= 5);
  const values = await page.evaluate(valuesOf);
  await tab.until((before) => [...document.querySelectorAll(".row:not([hidden]) .value")].map((cell) => cell.textContent).join() !== before, values);
  await tab.until(() => Number(document.body.dataset.fps) > 5);
  const before = await page.evaluate(pixelsOf);
  check(before.inked > 100, "the wave is drawn");
  await tab.until(`(${pixelsOf})().hash !== ${before.hash}`);
}

async function screenshots(tab) {
  for (const colorScheme of ["light", "dark"]) {
    await tab.page.emulateMedia({ colorScheme });
    for (const width of [1280, 390]) {
      await tab.page.setViewportSize({ width, height: width === 390 ? 844 : 900 });
      await tab.page.waitForTimeout(300);
      await tab.fits(`${colorScheme} ${width}`);
      await tab.shot(folder, `${colorScheme}-${width}`, { fullPage: width === 390 });
    }
  }
  await tab.page.setViewportSize(SIZE);
}

async function live(tab) {
  const { page } = tab;
  await page.goto(url);
  await tab.state("live");
  await updates(tab);
  check((await tab.text("unannounced")) === "0", "no loss is unannounced");

  // By keyboard only: select a row, subscribe to topics, pause and resume.
  await page.locator("#table").focus();
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("End");
  check((await page.locator('.row[aria-selected="true"]').count()) === 1, "one row is selected");
  await page.keyboard.press("/");
  await page.keyboard.type("no.such.topic");
  await page.keyboard.press("Enter");
  await tab.until(() => document.body.dataset.rows === "0");
  check(page.url().endsWith("?topics=no.such.topic"), page.url());
  await page.keyboard.press("ControlOrMeta+a");
  await page.keyboard.type("a..b");
  await page.keyboard.press("Enter");
  await page.locator("#topics-error:not([hidden])").waitFor();
  await page.locator("#topics").fill("");
  await page.keyboard.press("Enter");
  await tab.until(() => Number(document.body.dataset.rows) >= 5);
  await page.keyboard.press("Escape");
  await page.keyboard.press("p");
  await tab.tells("state-text", "Paused");
  await page.waitForTimeout(300);
  await page.keyboard.press("p");
  await tab.tells("events", "Paused for");
  check((await tab.text("unannounced")) === "0", "ticks missed during a pause are not an unannounced loss");

  await screenshots(tab);
  await page.emulateMedia({ colorScheme: "light", reducedMotion: "reduce" });
  await tab.until(() => Number(document.body.dataset.fps) <= 2);
  check((await page.evaluate(pixelsOf)).inked > 100, "the wave is drawn with reduced motion");
  await page.emulateMedia({ reducedMotion: "no-preference" });
}

async function lostAndBack(tab) {
  await tab.until(() => document.body.dataset.state !== "live");
  await tab.page.locator("#banner:not([hidden])").waitFor();
  await tab.shot(folder, "light-1280-lost");
  say("lost");
  await tab.until(() => document.body.dataset.state === "live" && document.body.dataset.reconnects === "1");
  await tab.tells("events", "The server restarted");
  await updates(tab);
  check((await tab.text("unannounced")) === "0", "no loss is unannounced after a server restart");
  await tab.shot(folder, "light-1280-back");
}

await run(executablePath, async (browser) => {
  const tab = await open(browser, url, { viewport: SIZE });
  try {
    await live(tab);
    say("live");
    await lostAndBack(tab);
    say("back");
    tab.assertQuiet();
  } catch (error) {
    await tab.shot(folder, "failed").catch(() => {});
    console.error(tab.errors);
    throw error;
  }
});
