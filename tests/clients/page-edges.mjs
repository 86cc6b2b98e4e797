// page-edges.mjs CHROMIUM FOLDER: tests the page in situations that a real server rarely produces: closing with a retry
// delay, lost batches of the wave, a suspension of a minute, thousands of topics. scripted.mjs plays the server, and tests
// advance the page's clock themselves. Prints "NAME holds" for each test and "end" last; screenshots go into FOLDER.
import { check, run, say } from "./browser.mjs";
import { EPOCH, FIRST, MS, WAVE, batches, finish, heart, nowNs, pause, price, start } from "./edge.mjs";
import { announced, conflated, gap, tick } from "./scripted.mjs";

const [executablePath, folder] = process.argv.slice(2);

/** The server stops and names a retry delay. Later it closes with a code that forbids reconnecting. */
async function closes(browser) {
  const edge = await start(browser, { isClockOurs: true });
  const { tab, script } = edge;
  const { clock } = tab.page;
  script.send(announced(FIRST, "a.b", EPOCH), tick(FIRST, 5, price(1), nowNs()));
  await tab.until(() => document.body.dataset.rows === "1");
  await pause(tab);
  script.close(3001, "the server stops", 600_000);
  await tab.state("waiting");
  await tab.tells("banner-text", "the server stops (3001). Retrying in 60");
  await tab.shot(folder, "edge-close");
  await clock.fastForward(599_000);
  await tab.tells("banner-text", "Retrying in ");
  check(script.connections === 1, "the page does not reconnect before the delay");
  // The random backoff adds at most half a second.
  await clock.fastForward(2_000);
  await script.isAsked(2, ">");
  await tab.state("live");
  script.send(announced(FIRST, "a.b", EPOCH), tick(FIRST, 9, price(2), nowNs()));
  await script.isHeard(tab);
  await clock.resume();
  await clock.fastForward(2_000);
  await tab.tells("events", " 3 ticks skipped; the table");
  check((await tab.text("unannounced")) === "0", "ticks missed during an absence are not an unannounced loss");

  script.close(3502, "replaced by a newer connection", 0);
  await tab.state("refused");
  await clock.fastForward(3_600_000);
  check(script.connections === 2, "the page does not reconnect after a final close code");
  await tab.page.locator("#retry").click();
  await script.isAsked(3, ">");
  await tab.state("live");
  await finish(edge);
}

/** Canvas columns that are tinted from top to bottom, and how many of them contain the trace. */
const columnsOf = () => {
  const canvas = document.getElementById("wave");
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  const alpha = (x, y) => data[4 * (y * width + x) + 3];
  const columns = Array.from({ length: width }, (_, x) => x);
  const tinted = columns.filter((x) => alpha(x, 4) > 0 && alpha(x, height - 2) > 0);
  const traced = tinted.filter((x) => Array.from({ length: height }, (_, y) => alpha(x, y)).some((a) => a > 200));
  return { tinted, traced: traced.length, seconds: Math.round(canvas.clientWidth / 110), width };
};

/** Batches are lost, first with and then without an announcement. */
async function lostBatches(browser) {
  const edge = await start(browser);
  const { tab, script } = edge;
  const startNs = nowNs() - 6_000n * MS;
  script.send(...heart(startNs), ...batches(startNs, 1, 51), gap(WAVE, 51, 76), ...batches(startNs, 76, 151));
  await tab.tells("batches", "25 batches lost");
  check((await tab.text("lost")) === "25" && (await tab.text("unannounced")) === "0", "announced as lost");
  // One second without samples shows as a gap of that width, without a line through it.
  await tab.until(() => {
    const canvas = document.getElementById("wave");
    const { data } = canvas.getContext("2d").getImageData(0, 4, canvas.width, 1);
    return data.some((value) => value > 0);
  });
  const { tinted, traced, seconds, width } = await tab.page.evaluate(columnsOf);
  const wanted = width / seconds;
  check(Math.abs(tinted.length - wanted) < 0.1 * wanted, `${tinted.length} columns are tinted, not ${wanted}`);
  check(tinted.at(-1) - tinted[0] === tinted.length - 1, "the gap is contiguous");
  check(traced < 10, `${traced} columns of the gap have a trace`);
  await tab.shot(folder, "edge-gap");
  script.send(...batches(startNs, 161, 170));
  await tab.tells("unannounced", "10");
  await tab.tells("batches", "35 batches lost");
  await finish(edge);
}

/** The page's clock jumps by a minute, as when a lid is closed: the page counts and reports what it missed. */
async function asleep(browser) {
  const edge = await start(browser, { isClockOurs: true });
  const { tab, script } = edge;
  const { clock } = tab.page;
  const startNs = nowNs() - 4_000n * MS;
  script.send(...heart(startNs), ...batches(startNs, 1, 101));
  script.send(announced(FIRST, "a.b", EPOCH), tick(FIRST, 1, price(1), nowNs()));
  await tab.until(() => document.body.dataset.rows === "1");
  await pause(tab);
  await clock.fastForward(60_000);
  script.send(conflated(FIRST, 2, 301), tick(FIRST, 301, price(2), nowNs()));
  script.send(gap(WAVE, 101, 1_501), ...batches(startNs, 1_501, 1_600));
  await script.isHeard(tab);
  await clock.resume();
  await clock.fastForward(2_000);
  await tab.tells("events", "Page suspended for");
  await tab.tells("events", " 299 ticks skipped, 1,400 ECG batches lost");
  check(script.connections === 1, "a working connection is kept");
  check((await tab.text("unannounced")) === "0" && (await tab.text("lost")) === "1,400", "every loss was announced");
  await finish(edge);
}

/** The server closes the connection while the page is suspended: the page reports one absence, once. */
async function closedWhileAsleep(browser) {
  const edge = await start(browser, { isClockOurs: true });
  const { tab, script } = edge;
  const { clock } = tab.page;
  const sequence = (wanted) =>
    tab.until((wanted) => document.querySelector(".row .sequence")?.textContent === wanted, wanted);
  script.send(announced(FIRST, "a.b", EPOCH), tick(FIRST, 1, price(1), nowNs()));
  await sequence("1");
  await clock.pauseAt(Date.now() + 90_000);
  script.send(conflated(FIRST, 2, 101), tick(FIRST, 101, price(2), nowNs()));
  script.close(3011, "no answer to a ping in time", 0);
  await tab.state("waiting");
  await clock.runFor(1_000);
  await script.isAsked(2, ">");
  script.send(announced(FIRST, "a.b", EPOCH), tick(FIRST, 201, price(3), nowNs()));
  await script.isHeard(tab);
  await clock.resume();
  await clock.fastForward(2_000);
  await tab.tells("events", "Reconnected after 1 min");
  await tab.tells("events", " 198 ticks skipped; the table");
  check(!(await tab.text("events")).includes("suspended"), "one absence is reported once");
  check((await tab.text("unannounced")) === "0", "every loss was announced");
  await finish(edge);
}

/** A hidden tab unsubscribes after a while, and reports what it missed once it is visible again. */
async function hidden(browser) {
  const edge = await start(browser, { isClockOurs: true });
  const { tab, script } = edge;
  const { clock } = tab.page;
  const show = (isHidden) =>
    tab.page.evaluate((isHidden) => {
      Object.defineProperty(document, "hidden", { value: isHidden, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }, isHidden);
  script.send(announced(FIRST, "a.b", EPOCH), tick(FIRST, 1, price(1), nowNs()));
  await tab.until(() => document.body.dataset.rows === "1");
  await show(true);
  await clock.fastForward(5_000);
  check(script.asked.has(">"), "a tab hidden briefly stays subscribed");
  await clock.fastForward(5_500);
  await script.isAskedForNothing();
  await clock.fastForward(60_000);
  await pause(tab);
  await show(false);
  await script.isAsked(1, ">");
  script.send(tick(FIRST, 21, price(2), nowNs()));
  await script.isHeard(tab);
  await clock.resume();
  await clock.fastForward(2_000);
  await tab.tells("events", "Hidden for 1 min");
  await tab.tells("events", " 19 ticks skipped; the table");
  check(script.connections === 1 && (await tab.text("unannounced")) === "0", "the connection is kept");
  await finish(edge);
}

/** More topics than the table lists, all active: only visible rows are rendered. */
async function thousands(browser) {
  const edge = await start(browser);
  const { tab, script } = edge;
  const [topics, listed] = [12_000, 10_000];
  const name = (at) => `crowd.${String(at).padStart(5, "0")}`;
  const all = Array.from({ length: topics }, (_, at) => at);
  for (let at = 0; at < topics; at += 1_000) {
    script.send(...all.slice(at, at + 1_000).map((at) => announced(FIRST + at, name(at), EPOCH)));
  }
  const everyTick = (sequence) => {
    for (let at = 0; at < topics; at += 1_000) {
      const some = all.slice(at, at + 1_000);
      script.send(...some.map((at) => tick(FIRST + at, sequence, price(at + sequence), nowNs())));
    }
  };
  everyTick(1);
  await tab.tells("listed", "10,000 of 12,000 shown; narrow the pattern");
  const shown = () => [...document.querySelectorAll(".row:not([hidden])")].map((row) => row.textContent);
  const rendered = await tab.page.evaluate(shown);
  check(rendered.length > 5 && rendered.length < 60, `${rendered.length} rows have elements`);
  await tab.page.locator("#table").focus();
  await tab.page.keyboard.press("End");
  await tab.until((last) => document.querySelector('.row[aria-selected="true"]')?.textContent.startsWith(last), name(listed - 1));
  // Sorted by a column that changes, the order follows the values.
  await tab.page.locator('[data-sort="value"]').click();
  for (let sequence = 2; sequence <= 5; sequence += 1) everyTick(sequence);
  await tab.page.keyboard.press("Home");
  await tab.page.locator("#table").focus();
  await tab.page.keyboard.press("Home");
  await tab.until((first) => {
    const row = document.querySelector(".row:not([hidden])[aria-selected='true']");
    return row?.querySelector(".name").textContent === first && row.querySelector(".value").textContent === "10004";
  }, name(listed - 1));
  check((await tab.page.locator(".row").count()) < 60, "rows scrolled out of view have no elements");
  check((await tab.text("unannounced")) === "0", "no tick is lost");
  await tab.shot(folder, "edge-thousands");
  await finish(edge);
}

await run(executablePath, async (browser) => {
  for (const edge of [closes, lostBatches, asleep, closedWhileAsleep, hidden, thousands]) {
    await edge(browser);
    say(`${edge.name} holds`);
  }
});
