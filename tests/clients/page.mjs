// page.mjs CHROMIUM URL FOLDER: opens the page in a headless browser and looks at what it shows, for the integration tests.
//
// "live" once rows and wave move, the page was paused and went on, and its screenshots are in FOLDER; "lost" when it has
// seen the server go, "back" when it has found one again; "end" last. What the page logs as an error is one.
import { chromium } from "playwright-core";

const [executablePath, url, folder] = process.argv.slice(2);
const GUARD_MS = 60_000;

const say = (text) => process.stdout.write(`${text}\n`);
const check = (holds, what) => {
  if (!holds) throw new Error(what);
};

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"] });
const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
context.setDefaultTimeout(GUARD_MS);
const page = await context.newPage();
const errors = [];
/** What a browser says of a server that is away is no error of the page. */
const isOfConnection = (text) => /WebSocket connection|ERR_CONNECTION|net::ERR/.test(text);
page.on("pageerror", (error) => errors.push(error.stack ?? String(error)));
page.on("console", (message) => {
  if (message.type() === "error" && !isOfConnection(message.text())) errors.push(message.text());
});
page.on("requestfailed", (request) => errors.push(`${request.url()}: ${request.failure()?.errorText}`));
page.on("request", (request) => request.url().startsWith(url) || errors.push(`asks for ${request.url()}`));

/** Looks until it holds. Not with waitForFunction, which the page's content security policy may refuse. */
async function until(holds, argument) {
  const end = Date.now() + GUARD_MS;
  while (!(await page.evaluate(holds, argument))) {
    check(Date.now() < end, `waited in vain for ${holds} ${argument ?? ""}`);
    await page.waitForTimeout(50);
  }
}
const state = (wanted) => until((wanted) => document.body.dataset.state === wanted, wanted);
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
const text = (id) => page.locator(`#${id}`).textContent();

/** Rows get other values and the wave other pixels. */
async function moves() {
  await until(() => Number(document.body.dataset.rows) >= 5);
  const values = await page.evaluate(valuesOf);
  await until((before) => [...document.querySelectorAll(".row:not([hidden]) .value")].map((cell) => cell.textContent).join() !== before, values);
  await until(() => Number(document.body.dataset.fps) > 30);
  const before = await page.evaluate(pixelsOf);
  check(before.inked > 100, "the wave is drawn");
  await page.waitForTimeout(500);
  const after = await page.evaluate(pixelsOf);
  check(before.hash !== after.hash, "the wave moves");
}

async function screenshots(suffix) {
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    for (const width of [1280, 390]) {
      await page.setViewportSize({ width, height: width === 390 ? 844 : 900 });
      await page.waitForTimeout(700);
      const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      check(overflow <= 0, `${overflow} pixels are beyond the right edge at ${width}`);
      await page.screenshot({ path: `${folder}/${colorScheme}-${width}${suffix}.png`, fullPage: width === 390 });
    }
  }
  await page.setViewportSize({ width: 1280, height: 900 });
}

try {
  await page.goto(url);
  await state("live");
  await moves();
  check((await text("unannounced")) === "0", "no tick is lost in silence");

  // By keyboard alone: a row is chosen, topics are asked for, the page pauses and goes on.
  await page.locator(".body").focus();
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("End");
  check((await page.locator('.row[aria-selected="true"]').count()) === 1, "one row is chosen");
  await page.keyboard.press("/");
  await page.keyboard.type("no.such.topic");
  await page.keyboard.press("Enter");
  await until(() => document.body.dataset.rows === "0");
  check(page.url().endsWith("?topics=no.such.topic"), page.url());
  await page.keyboard.press("ControlOrMeta+a");
  await page.keyboard.type("a..b");
  await page.keyboard.press("Enter");
  await page.locator("#topics-error:not([hidden])").waitFor();
  await page.locator("#topics").fill("");
  await page.keyboard.press("Enter");
  await until(() => Number(document.body.dataset.rows) >= 5);
  await page.keyboard.press("Escape");
  await page.keyboard.press("p");
  await until(() => document.getElementById("state-text").textContent === "Paused");
  await page.waitForTimeout(1_000);
  await page.keyboard.press("p");
  await until(() => document.getElementById("events").textContent.includes("Paused for"));
  check((await text("unannounced")) === "0", "what was missed in the pause is no silent loss");

  await screenshots("");
  await page.emulateMedia({ colorScheme: "light", reducedMotion: "reduce" });
  const still = await page.evaluate(pixelsOf);
  await until(() => Number(document.body.dataset.fps) <= 2);
  check(still.inked > 100, "a wave in steps is a wave");
  await page.emulateMedia({ reducedMotion: "no-preference" });
  say("live");

  await until(() => document.body.dataset.state !== "live");
  await page.locator("#banner:not([hidden])").waitFor();
  await page.screenshot({ path: `${folder}/light-1280-lost.png` });
  say("lost");
  await until(() => document.body.dataset.state === "live" && document.body.dataset.reconnects === "1");
  await until(() => document.getElementById("events").textContent.includes("started anew"));
  await moves();
  check((await text("unannounced")) === "0", "nothing is lost in silence when the server comes back");
  await page.screenshot({ path: `${folder}/light-1280-back.png` });
  say("back");
  check(errors.length === 0, `the page logged: ${errors.join("; ")}`);
  say("end");
} catch (error) {
  await page.screenshot({ path: `${folder}/failed.png` }).catch(() => {});
  console.error(error, errors);
  process.exitCode = 1;
} finally {
  await browser.close();
}
