// page-faults.mjs CHROMIUM FOLDER: what the page does about faults of others: a server that never welcomes it, a machine that
// slept, wrong publishes, batches of another size, holes before a notice, a file that does not come. The server is scripted.mjs. "NAME holds" of
// each, "end" last.
import { check, open, run, say } from "./browser.mjs";
import { EPOCH, FIRST, INFO, MS, PARAMS, WAVE, batches, begin, finish, heart, nowNs, pause, price, start } from "./edge.mjs";
import { announced, conflated, failure, gap, serve, tick } from "./scripted.mjs";

const [executablePath, folder] = process.argv.slice(2);

const shows = (tab, sequence) =>
  tab.until((wanted) => document.querySelector(".row .sequence")?.textContent === wanted, String(sequence));

/** A connection that opens and is never welcomed is given up, by itself and by a person. */
async function neverWelcomed(browser) {
  const edge = await begin(browser, { isClockOurs: true, mute: 2 });
  const { tab, script } = edge;
  const { clock } = tab.page;
  await script.isConnected(1);
  await clock.runFor(12_500);
  await tab.tells("banner-text", "no welcome in ten seconds");
  await clock.runFor(1_000);
  await script.isConnected(2);
  await tab.page.locator("#retry").click();
  await script.isAsked(3, ">");
  await tab.state("live");
  await finish(edge);
}

/** A machine sleeps: `performance.now()` stands still, only the date goes on. */
async function suspended(browser) {
  const edge = await start(browser);
  const { tab, script } = edge;
  script.send(announced(FIRST, "a.b", EPOCH), tick(FIRST, 1, price(1), nowNs()));
  await shows(tab, 1);
  const sleep = (ms) =>
    tab.page.evaluate((ms) => {
      const { now } = Date;
      Date.now = () => now() + ms;
    }, ms);
  await sleep(60_000);
  await tab.tells("events", "This page slept for");
  // Given up meanwhile: it has been away since it fell asleep.
  await sleep(120_000);
  script.close(3011, "no answer to a ping in time", 0);
  await script.isAsked(2, ">");
  await tab.tells("events", "Back after 1 min 5");
  await finish(edge);
}

/** Anyone may publish to the heart's topics. */
async function wrongPublishes(browser) {
  const edge = await start(browser);
  const { tab, script } = edge;
  const startNs = nowNs() - 4_000n * MS;
  script.send(...heart(startNs), ...batches(startNs, 1, 76));
  await tab.tells("lead", "synthetic, 250 Hz");
  const wrong = [null, 7, {}, { fs: "250", batch: 10, start_ns: 1 }, { fs: 250, batch: -1, start_ns: 1 }];
  const odd = { fs: 250, batch: 10, start_ns: Number(startNs), signal: { a: 1 }, record: "r".repeat(500) };
  script.send(...[...wrong, odd].map((info, at) => tick(INFO, at + 2, JSON.stringify(info), nowNs())));
  await tab.tells("lead", `of record ${"r".repeat(64)}, 250 Hz`);
  const params = [null, { bpm: "fast" }, { bpm: {}, at_sample: 5, rr_ms: "x" }];
  script.send(...params.map((params, at) => tick(PARAMS, at + 1, JSON.stringify(params), nowNs())));
  await tab.tells("beat", "");
  await tab.tells("bpm", "–");

  // One batch of next year: it is left out, and the wave goes on.
  const year = 365n * 86_400_000n * MS;
  script.send(tick(WAVE, 76, Buffer.alloc(40), nowNs() + year, { receiptNs: nowNs() }), ...batches(startNs, 77, 101));
  await tab.tells("batches", "1 of another time left out");
  await tab.until(() => Number(document.body.dataset.fps) > 0);
  const inked = await tab.page.evaluate(() => {
    const canvas = document.getElementById("wave");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return data.filter((value, at) => at % 4 === 3 && value > 0).length;
  });
  check(inked > 100, "the wave is still drawn");
  // The page's own mistakes cost no connection.
  await tab.page.evaluate(() => {
    const { getElementById } = document;
    document.getElementById = (id) => {
      if (id === "events") throw new Error("of this test");
      return getElementById.call(document, id);
    };
  });
  script.send(failure(99, 100, "of this test"));
  script.send(announced(FIRST, "a.b", EPOCH), tick(FIRST, 3, price(1), nowNs()));
  await shows(tab, 3);
  check(script.connections === 1, "the connection is kept");
  check(tab.errors.length === 1 && tab.errors[0].includes("of this test"), `one error: ${tab.errors}`);
  tab.errors.length = 0;
  await finish(edge);
}

/** Batches of 4 s: the wave moves all the time, and is not flat between two. */
async function longBatches(browser) {
  const edge = await start(browser, { isClockOurs: true });
  const { tab, script } = edge;
  const { clock } = tab.page;
  const startNs = nowNs() - 40_000n * MS;
  script.send(...heart(startNs, 1_000), ...batches(startNs, 1, 11, 1_000));
  await tab.until(() => Number(document.body.dataset.fps) > 0);
  await pause(tab);
  const frames = [];
  for (let at = 0; at < 6; at += 1) {
    await clock.runFor(500);
    frames.push(await tab.page.evaluate(() => document.getElementById("wave").toDataURL()));
    check(await tab.page.locator("#flat").isHidden(), "a wave between two batches is not flat");
  }
  check(new Set(frames).size === frames.length, "the trace goes on between two batches");
  await tab.shot(folder, "edge-long-batches");
  await clock.resume();
  await clock.fastForward(4_000);
  await clock.fastForward(4_000);
  await clock.fastForward(4_500);
  await tab.page.locator("#flat:not([hidden])").waitFor();
  await finish(edge);
}

/** What no message explains is found wherever it is, and is counted once. */
async function holes(browser) {
  const edge = await start(browser, { query: "?topics=a.>,ecg.>" }, "ecg.>");
  const { tab, script } = edge;
  const startNs = nowNs() - 4_000n * MS;
  // The opening gap is of before this page.
  script.send(announced(FIRST, "a.b", EPOCH), gap(FIRST, 1, 50), tick(FIRST, 50, price(1), nowNs()));
  await shows(tab, 50);
  // Ten in silence, then five announced; a snapshot's distance is no loss.
  script.send(gap(FIRST, 61, 66), tick(FIRST, 66, price(1), nowNs()));
  script.send(tick(FIRST, 90, price(2), nowNs(), { isSnapshot: true }), tick(FIRST, 95, price(2), nowNs()));
  await tab.tells("unannounced", "10");
  await tab.tells("lost", "5");
  // The wave is in the table too: its batches are lost once.
  script.send(...heart(startNs), ...batches(startNs, 1, 11), gap(WAVE, 16, 21), ...batches(startNs, 21, 31));
  await tab.tells("batches", "10 batches lost");
  await tab.until(() => document.getElementById("unannounced").textContent === "15");
  await tab.until(() => document.getElementById("lost").textContent === "10");
  await finish(edge);
}

/** A snapshot after an absence may be older than what was missed, and rows that a new server does not have go. */
async function absences(browser) {
  const edge = await start(browser, { isClockOurs: true });
  const { tab, script } = edge;
  const { clock } = tab.page;
  const again = async (connection, ...frames) => {
    script.close(1012, "again", 0);
    await tab.state("waiting");
    // In small steps: once it is connected, no time may pass until it has heard what it is to be told.
    for (let step = 0; step < 25 && script.connections < connection; step += 1) {
      await clock.runFor(100);
      await new Promise((wakes) => setTimeout(wakes, 50));
    }
    await script.isAsked(connection, ">");
    await tab.state("live");
    script.send(...frames);
    await script.isHeard(tab);
    await clock.runFor(3_000);
  };
  script.send(announced(FIRST, "a.b", EPOCH), tick(FIRST, 10, price(1), nowNs()));
  script.send(announced(FIRST + 1, "a.gone", EPOCH), tick(FIRST + 1, 1, price(1), nowNs()));
  await shows(tab, 10);
  await pause(tab);
  const old = tick(FIRST, 10, price(1), nowNs(), { isSnapshot: true });
  await again(2, announced(FIRST, "a.b", EPOCH), old, tick(FIRST, 14, price(1), nowNs()));
  await tab.tells("events", "3 ticks of the table skipped");
  check((await tab.text("unannounced")) === "0", "none is lost in silence");
  script.epoch = 8n;
  await again(3, announced(FIRST, "a.b", 8n), tick(FIRST, 1, price(1), nowNs()));
  await tab.tells("events", "started anew");
  await tab.until(() => document.body.dataset.rows === "1");
  await finish(edge);
}

/** Latency is measured on a topic that comes whole, though it was asked for by name; one that goes quiet is left. */
async function probes(browser) {
  const edge = await start(browser, { isClockOurs: true, query: "?topics=a.b,a.c" }, "a.c");
  const { tab, script } = edge;
  const { clock } = tab.page;
  script.send(announced(FIRST, "a.b", EPOCH), announced(FIRST + 1, "a.c", EPOCH));
  let isQuiet = false;
  let sequence = 0;
  const ticks = setInterval(() => {
    sequence += 1;
    if (!isQuiet) script.send(tick(FIRST, sequence, price(1), nowNs()));
    script.send(conflated(FIRST + 1, 10 * sequence - 9, 10 * sequence), tick(FIRST + 1, 10 * sequence, price(1), nowNs()));
  }, 50);
  await script.isPaced("a.b", 0);
  await tab.tells("latency-more", "on a.b");
  isQuiet = true;
  await clock.fastForward(5_500);
  await script.isPaced("a.b", 5_000);
  await script.isPaced("a.c", 0);
  clearInterval(ticks);
  await finish(edge);
}

/** A network that is back for many is no reason to come at once, nor before the server wants it; a key held down is one. */
async function storms(browser) {
  const edge = await start(browser, { isClockOurs: true });
  const { tab, script } = edge;
  const { clock } = tab.page;
  await pause(tab);
  script.close(3001, "the server stops", 60_000);
  await tab.state("waiting");
  await tab.page.evaluate(() => dispatchEvent(new Event("online")));
  await clock.fastForward(3_000);
  check(script.connections === 1, "the page comes before it was asked to");
  await clock.fastForward(58_000);
  await clock.runFor(600);
  await script.isAsked(2, ">");
  await tab.state("live");
  await tab.page.keyboard.down("p");
  await tab.page.keyboard.down("p");
  await tab.tells("state-text", "Paused");
  await finish(edge);
}

/** The focus is the grid's, the choice is a topic's, whatever place it has. */
async function choices(browser) {
  const edge = await start(browser);
  const { tab, script } = edge;
  const names = ["a.one", "a.three", "a.two"];
  names.forEach((name, at) => script.send(announced(FIRST + at, name, EPOCH), tick(FIRST + at, 1, price(9 - at), nowNs())));
  await tab.until(() => document.querySelectorAll(".row:not([hidden])").length === 3);
  await tab.page.locator("#table").focus();
  await tab.page.keyboard.press("Home");
  const chosen = () => {
    const table = document.activeElement;
    return document.getElementById(table.getAttribute("aria-activedescendant"))?.querySelector(".name").textContent;
  };
  await tab.until(`(${chosen})() === "a.one"`);
  await tab.page.locator('[data-sort="value"]').click();
  await tab.page.locator('[data-sort="value"]').click();
  await tab.page.locator("#table").focus();
  await tab.until(() => document.querySelector('.row[aria-selected="true"]').getAttribute("aria-rowindex") === "4");
  check((await tab.page.evaluate(chosen)) === "a.one", "the choice has moved with its row");
  await finish(edge);
}

/** A file of the page is refused: the page says so, and is whole when it is loaded again. */
async function brokenLoad(browser) {
  const script = await serve();
  const tab = await open(browser, script.url, {});
  await tab.page.route("**/wire.js", (route) => route.fulfill({ status: 429 }));
  await tab.page.goto(script.url);
  await tab.page.locator("#broken").waitFor();
  tab.errors.length = 0;
  await tab.page.unroute("**/wire.js");
  await tab.page.locator("#broken a").click();
  await tab.state("live");
  check(await tab.page.locator("#broken").isHidden(), "a page that is whole says nothing");
  await finish({ tab, script });
}

await run(executablePath, async (browser) => {
  for (const fault of [
    neverWelcomed,
    suspended,
    wrongPublishes,
    longBatches,
    holes,
    absences,
    probes,
    storms,
    choices,
    brokenLoad,
  ]) {
    await fault(browser);
    say(`${fault.name} holds`);
  }
});
