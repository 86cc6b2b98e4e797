// browser.mjs: opens the page in a headless browser for tests and screenshots, collects the errors it logs, and waits for
// conditions.
import { existsSync } from "node:fs";
import { delimiter, join } from "node:path";
import { chromium } from "playwright-core";

/** Longest wait for anything. */
export const GUARD_MS = 60_000;

export function check(holds, what) {
  if (!holds) throw new Error(what);
}

export const say = (text) => process.stdout.write(`${text}\n`);

/** Path of the browser: Debian's Chromium, Chrome, or the one of `playwright-core install --no-shell chromium`. */
export function findBrowser() {
  const folders = (process.env.PATH ?? "").split(delimiter);
  for (const name of ["chromium", "chromium-browser", "google-chrome"]) {
    const found = folders.map((folder) => join(folder, name)).find((file) => existsSync(file));
    if (found !== undefined) return found;
  }
  const own = chromium.executablePath();
  return existsSync(own) ? own : undefined;
}

/** Starts the browser, by default the one that `findBrowser` finds. */
export function launch(executablePath = findBrowser()) {
  check(executablePath !== undefined, "Chromium not found: apt-get install chromium, or run scripts/test.sh");
  const args = ["--no-sandbox", "--disable-gpu"];
  // With scroll bars, as users see them.
  return chromium.launch({ executablePath, args, ignoreDefaultArgs: ["--hide-scrollbars"] });
}

/** Whether a message is about the connection: a server that is down is not an error of the page. */
const isOfConnection = (text) => /WebSocket connection|ERR_CONNECTION|net::ERR/.test(text);

/** A tab of its own with the page, not opened yet. `options` are playwright's for a context. */
export async function open(browser, url, options) {
  const context = await browser.newContext(options);
  context.setDefaultTimeout(GUARD_MS);
  const page = await context.newPage();
  return new Tab(page, url);
}

class Tab {
  /** What the page logged as an error, or asked for elsewhere. */
  errors = [];

  constructor(page, url) {
    this.page = page;
    this.url = url;
    page.on("pageerror", (error) => this.errors.push(error.stack ?? String(error)));
    page.on("console", (message) => {
      if (message.type() === "error" && !isOfConnection(message.text())) this.errors.push(message.text());
    });
    page.on("requestfailed", (request) => this.errors.push(`${request.url()}: ${request.failure()?.errorText}`));
    page.on("request", (request) => request.url().startsWith(url) || this.errors.push(`asks for ${request.url()}`));
  }

  /** Looks until it holds. Not with waitForFunction, which the page's content security policy may refuse. */
  async until(holds, argument) {
    const end = Date.now() + GUARD_MS;
    while (!(await this.page.evaluate(holds, argument))) {
      check(Date.now() < end, `waited in vain for ${holds} ${argument ?? ""}`);
      await new Promise((done) => setTimeout(done, 50));
    }
  }

  /** Waits for the state of the connection. */
  state(wanted) {
    return this.until((wanted) => document.body.dataset.state === wanted, wanted);
  }

  /** Waits until an element's text holds a part. */
  async tells(id, part) {
    await this.until(([id, part]) => document.getElementById(id).textContent.includes(part), [id, part]);
  }

  text(id) {
    return this.page.locator(`#${id}`).textContent();
  }

  async shot(folder, name, options) {
    await this.page.screenshot({ path: join(folder, `${name}.png`), ...options });
  }

  /** The page lies within its width. */
  async fits(what) {
    const overflow = await this.page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    check(overflow <= 0, `${overflow} pixels are beyond the right edge: ${what}`);
  }

  /** The page said nothing was wrong. */
  assertQuiet() {
    check(this.errors.length === 0, `the page logged: ${this.errors.join("; ")}`);
  }

  close() {
    return this.page.context().close();
  }
}

/** Runs a program with a browser, and then ends this process: "end" last and exit code 0 when all held. */
export async function run(executablePath, program) {
  const browser = await launch(executablePath);
  try {
    await program(browser);
    say("end");
  } catch (error) {
    console.error(error);
    process.exitCode = 1;
  }
  await browser.close();
  // What still listens or waits is of no use now.
  process.exit();
}
