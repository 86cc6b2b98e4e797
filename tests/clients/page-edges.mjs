// page-edges.mjs CHROMIUM FOLDER: what the page does in cases that a real server seldom makes: goodbyes with a time to come back,
// lost batches of the wave, a minute asleep, thousands of topics. The server is scripted.mjs, the page's clock is set on
// by hand where time is to pass. "NAME holds" of each, "end" last; a picture of each in FOLDER.
import { check, run, say } from "./browser.mjs";
import { EPOCH, FIRST, MS, WAVE, batches, finish, heart, nowNs, pause, price, start } from "./edge.mjs";
import { announced, conflated, gap, tick } from "./scripted.mjs";

const [executablePath, folder] = process.argv.slice(2);
/** The server stops and says when to come back; later it does not want the page back at all. */
async function goodbyes(browser) {
  const edge = await start(browser, { isClockOurs: true });
  const { tab, script } = edge;
  const { clock } = tab.page;
  script.send(announced(FIRST, "a.b", EPOCH), tick(FIRST, 5, price(1), nowNs()));
  await tab.until(() => document.body.dataset.rows === "1");
  await pause(tab);
  script.close(3001, "the server stops", 600_000);
  await tab.state("waiting");
  await tab.tells("banner-text", "the server stops (3001). Next attempt in 60");
  await tab.shot(folder, "edge-goodbye");
  await clock.fastForward(599_000);
  await tab.tells("banner-text", "Next attempt in ");
  check(script.connections === 1, "the page comes back before it was asked to");
  // The pause of its own is half a second at most.
  await clock.fastForward(2_000);
  await script.isAsked(2, ">");
  await tab.state("live");
  script.send(announced(FIRST, "a.b", EPOCH), tick(FIRST, 9, price(2), nowNs()));
  await script.isHeard(tab);
  await clock.resume();
  await clock.fastForward(2_000);
  await tab.tells("events", "3 ticks of the table skipped");
  check((await tab.text("unannounced")) === "0", "what was missed while away is no silent loss");

  script.close(3502, "replaced by a newer connection", 0);
  await tab.state("refused");
  await clock.fastForward(3_600_000);
  check(script.connections === 2, "the page comes back though it is not wanted");
  await tab.page.locator("#retry").click();
  await script.isAsked(3, ">");
  await tab.state("live");
  await finish(edge);
}

/** Columns of the wave's canvas that are tinted from top to bottom, and of these the ones with a trace. */
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

/** Batches are lost: announced, and in silence. */
async function lostBatches(browser) {
  const edge = await start(browser);
  const { tab, script } = edge;
  const startNs = nowNs() - 6_000n * MS;
  script.send(...heart(startNs), ...batches(startNs, 1, 51), gap(WAVE, 51, 76), ...batches(startNs, 76, 151));
  await tab.tells("batches", "25 batches lost");
  check((await tab.text("lost")) === "25" && (await tab.text("unannounced")) === "0", "announced as lost");
  // One second without samples: a hole of that width, without a line through it.
  await tab.until(() => {
    const canvas = document.getElementById("wave");
    const { data } = canvas.getContext("2d").getImageData(0, 4, canvas.width, 1);
    return data.some((value) => value > 0);
  });
  const { tinted, traced, seconds, width } = await tab.page.evaluate(columnsOf);
  const wanted = width / seconds;
  check(Math.abs(tinted.length - wanted) < 0.1 * wanted, `${tinted.length} columns are tinted, not ${wanted}`);
  check(tinted.at(-1) - tinted[0] === tinted.length - 1, "the hole is in one piece");
  check(traced < 10, `${traced} columns of the hole have a trace`);
  await tab.shot(folder, "edge-gap");
  script.send(...batches(startNs, 161, 170));
  await tab.tells("unannounced", "10");
  await tab.tells("batches", "35 batches lost");
  await finish(edge);
}

/** The page's time jumps by a minute, as when a lid is closed: what the server left out meanwhile is counted and told. */
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
  await tab.tells("events", "This page slept for");
  await tab.tells("events", "299 ticks of the table skipped, 1,400 batches of the wave lost");
  check(script.connections === 1, "a connection that lives is kept");
  check((await tab.text("unannounced")) === "0" && (await tab.text("lost")) === "1,400", "all was announced");
  await finish(edge);
}

/** The server gives the page up in its sleep, and this is what it wakes to: one absence, told once. */
async function givenUp(browser) {
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
  await tab.tells("events", "Back after 1 min");
  await tab.tells("events", "198 ticks of the table skipped");
  check(!(await tab.text("events")).includes("slept"), "one absence is told once");
  check((await tab.text("unannounced")) === "0", "all was announced");
  await finish(edge);
}

/** Nobody looks at the tab: after a while it asks for nothing, and looked at again it says what it missed. */
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
  check(script.asked.has(">"), "a glance elsewhere is no absence");
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
  await tab.tells("events", "19 ticks of the table skipped");
  check(script.connections === 1 && (await tab.text("unannounced")) === "0", "the connection is kept");
  await finish(edge);
}

/** More topics than are listed, each with ticks: what is drawn is bounded by what is in sight. */
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
  await tab.tells("listed", "10,000 of 12,000: ask for fewer");
  const shown = () => [...document.querySelectorAll(".row:not([hidden])")].map((row) => row.textContent);
  const inSight = await tab.page.evaluate(shown);
  check(inSight.length > 5 && inSight.length < 60, `${inSight.length} rows have elements`);
  await tab.page.locator("#table").focus();
  await tab.page.keyboard.press("End");
  await tab.until((last) => document.querySelector('.row[aria-selected="true"]')?.textContent.startsWith(last), name(listed - 1));
  // Sorted by what changes: the order follows.
  await tab.page.locator('[data-sort="value"]').click();
  for (let sequence = 2; sequence <= 5; sequence += 1) everyTick(sequence);
  await tab.page.keyboard.press("Home");
  await tab.page.locator("#table").focus();
  await tab.page.keyboard.press("Home");
  await tab.until((first) => {
    const row = document.querySelector(".row:not([hidden])[aria-selected='true']");
    return row?.querySelector(".name").textContent === first && row.querySelector(".value").textContent === "10004";
  }, name(listed - 1));
  check((await tab.page.locator(".row").count()) < 60, "rows that were scrolled by have no elements");
  check((await tab.text("unannounced")) === "0", "none is lost");
  await tab.shot(folder, "edge-thousands");
  await finish(edge);
}

await run(executablePath, async (browser) => {
  for (const edge of [goodbyes, lostBatches, asleep, givenUp, hidden, thousands]) {
    await edge(browser);
    say(`${edge.name} holds`);
  }
});
