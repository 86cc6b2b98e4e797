// page-faults.mjs CHROMIUM FOLDER: tests how the page handles faults elsewhere: a server that never sends a welcome, a
// machine that slept, malformed payloads, unusual batch sizes, unannounced gaps, a file that fails to load. scripted.mjs
// plays the server. Prints "NAME holds" for each test and "end" last.
import { check, open, run, say } from "./browser.mjs";
import { EPOCH, FIRST, INFO, MS, PARAMS, WAVE, batches, begin, finish, heart, nowNs, pause, price, start } from "./edge.mjs";
import { announced, conflated, failure, gap, serve, tick } from "./scripted.mjs";

const [executablePath, folder] = process.argv.slice(2);

const showsSequence = (tab, sequence) =>
  tab.until((wanted) => document.querySelector(".row .sequence")?.textContent === wanted, String(sequence));

/** The page abandons a connection without a welcome, after a timeout or when the user retries. */
async function neverWelcomed(browser) {
  const edge = await begin(browser, { isClockOurs: true, mute: 2 });
  const { tab, script } = edge;
  const { clock } = tab.page;
  await script.isConnected(1);
  await clock.runFor(12_500);
  await tab.tells("banner-text", "no welcome within 10 s");
  await clock.runFor(1_000);
  await script.isConnected(2);
  await tab.page.locator("#retry").click();
  await script.isAsked(3, ">");
  await tab.state("live");
  await finish(edge);
}

/** The machine sleeps: `performance.now()` stops while the date advances. */
async function suspended(browser) {
  const edge = await start(browser);
  const { tab, script } = edge;
  script.send(announced(FIRST, "a.b", EPOCH), tick(FIRST, 1, price(1), nowNs()));
  await showsSequence(tab, 1);
  const sleep = (ms) =>
    tab.page.evaluate((ms) => {
      const { now } = Date;
      Date.now = () => now() + ms;
    }, ms);
  await sleep(60_000);
  await tab.tells("events", "Page suspended for");
  // If the server closes the connection meanwhile, the absence starts with the suspension.
  await sleep(120_000);
  script.close(3011, "no answer to a ping in time", 0);
  await script.isAsked(2, ">");
  await tab.tells("events", "Reconnected after 1 min 5");
  await finish(edge);
}

/** Any client may publish on the ECG topics. */
async function malformedPayloads(browser) {
  const edge = await start(browser);
  const { tab, script } = edge;
  const startNs = nowNs() - 4_000n * MS;
  script.send(...heart(startNs), ...batches(startNs, 1, 76));
  await tab.tells("lead", "synthetic, 250 Hz");
  const malformed = [null, 7, {}, { fs: "250", batch: 10, start_ns: 1 }, { fs: 250, batch: -1, start_ns: 1 }];
  const unusual = { fs: 250, batch: 10, start_ns: Number(startNs), signal: { a: 1 }, record: "r".repeat(500) };
  script.send(...[...malformed, unusual].map((info, at) => tick(INFO, at + 2, JSON.stringify(info), nowNs())));
  await tab.tells("lead", `, record ${"r".repeat(64)}, 250 Hz`);
  const params = [null, { bpm: "fast" }, { bpm: {}, at_sample: 5, rr_ms: "x" }];
  script.send(...params.map((params, at) => tick(PARAMS, at + 1, JSON.stringify(params), nowNs())));
  await tab.tells("beat", "");
  await tab.tells("bpm", "–");

  // A batch dated one year ahead is ignored, and the wave continues.
  const year = 365n * 86_400_000n * MS;
  script.send(tick(WAVE, 76, Buffer.alloc(40), nowNs() + year, { receiptNs: nowNs() }), ...batches(startNs, 77, 101));
  await tab.tells("batches", "1 ignored (implausible time)");
  await tab.until(() => Number(document.body.dataset.fps) > 0);
  const inked = await tab.page.evaluate(() => {
    const canvas = document.getElementById("wave");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return data.filter((value, at) => at % 4 === 3 && value > 0).length;
  });
  check(inked > 100, "the wave is still drawn");
  // An exception in the page's own code does not cost the connection.
  await tab.page.evaluate(() => {
    const { getElementById } = document;
    document.getElementById = (id) => {
      if (id === "events") throw new Error("injected by the test");
      return getElementById.call(document, id);
    };
  });
  script.send(failure(99, 100, "injected by the test"));
  script.send(announced(FIRST, "a.b", EPOCH), tick(FIRST, 3, price(1), nowNs()));
  await showsSequence(tab, 3);
  check(script.connections === 1, "the connection is kept");
  check(tab.errors.length === 1 && tab.errors[0].includes("injected by the test"), `one error: ${tab.errors}`);
  tab.errors.length = 0;
  await finish(edge);
}

/** With batches of 4 s, the trace keeps moving between batches and the signal is not reported missing. */
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
    check(await tab.page.locator("#no-signal").isHidden(), "the signal is present between two batches");
  }
  check(new Set(frames).size === frames.length, "the trace moves between two batches");
  await tab.shot(folder, "edge-long-batches");
  await clock.resume();
  await clock.fastForward(4_000);
  await clock.fastForward(4_000);
  await clock.fastForward(4_500);
  await tab.page.locator("#no-signal:not([hidden])").waitFor();
  await finish(edge);
}

/** Unannounced gaps are detected wherever they occur, and counted once. */
async function unannouncedGaps(browser) {
  const edge = await start(browser, { query: "?topics=a.>,ecg.>" }, "ecg.>");
  const { tab, script } = edge;
  const startNs = nowNs() - 4_000n * MS;
  // The first gap lies before this page's first tick and does not count.
  script.send(announced(FIRST, "a.b", EPOCH), gap(FIRST, 1, 50), tick(FIRST, 50, price(1), nowNs()));
  await showsSequence(tab, 50);
  // Ten unannounced, then five announced; the distance to a snapshot is not a loss.
  script.send(gap(FIRST, 61, 66), tick(FIRST, 66, price(1), nowNs()));
  script.send(tick(FIRST, 90, price(2), nowNs(), { isSnapshot: true }), tick(FIRST, 95, price(2), nowNs()));
  await tab.tells("unannounced", "10");
  await tab.tells("lost", "5");
  // The table lists the wave too: its lost batches are counted once.
  script.send(...heart(startNs), ...batches(startNs, 1, 11), gap(WAVE, 16, 21), ...batches(startNs, 21, 31));
  await tab.tells("batches", "10 batches lost");
  await tab.until(() => document.getElementById("unannounced").textContent === "15");
  await tab.until(() => document.getElementById("lost").textContent === "10");
  await finish(edge);
}

/** A snapshot after an absence may predate missed ticks. Rows of topics that a restarted server lacks are removed. */
async function absences(browser) {
  const edge = await start(browser, { isClockOurs: true });
  const { tab, script } = edge;
  const { clock } = tab.page;
  const reconnect = async (connection, ...frames) => {
    script.close(1012, "again", 0);
    await tab.state("waiting");
    // Small steps: once the page is connected, its clock must stand still until it has received the frames.
    for (let step = 0; step < 25 && script.connections < connection; step += 1) {
      await clock.runFor(100);
      await new Promise((done) => setTimeout(done, 50));
    }
    await script.isAsked(connection, ">");
    await tab.state("live");
    script.send(...frames);
    await script.isHeard(tab);
    await clock.runFor(3_000);
  };
  script.send(announced(FIRST, "a.b", EPOCH), tick(FIRST, 10, price(1), nowNs()));
  script.send(announced(FIRST + 1, "a.gone", EPOCH), tick(FIRST + 1, 1, price(1), nowNs()));
  await showsSequence(tab, 10);
  await pause(tab);
  const old = tick(FIRST, 10, price(1), nowNs(), { isSnapshot: true });
  await reconnect(2, announced(FIRST, "a.b", EPOCH), old, tick(FIRST, 14, price(1), nowNs()));
  await tab.tells("events", " 3 ticks skipped; the table");
  check((await tab.text("unannounced")) === "0", "no loss is unannounced");
  script.epoch = 8n;
  await reconnect(3, announced(FIRST, "a.b", 8n), tick(FIRST, 1, price(1), nowNs()));
  await tab.tells("events", "The server restarted");
  await tab.until(() => document.body.dataset.rows === "1");
  await finish(edge);
}

/** Latency is measured on a topic without a rate limit, even one subscribed by name. An idle topic is replaced. */
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

/** The return of the network does not override the server's retry delay. A key held down counts as one press. */
async function reconnectStorms(browser) {
  const edge = await start(browser, { isClockOurs: true });
  const { tab, script } = edge;
  const { clock } = tab.page;
  await pause(tab);
  script.close(3001, "the server stops", 60_000);
  await tab.state("waiting");
  await tab.page.evaluate(() => dispatchEvent(new Event("online")));
  await clock.fastForward(3_000);
  check(script.connections === 1, "the page does not reconnect before the delay");
  await clock.fastForward(58_000);
  await clock.runFor(600);
  await script.isAsked(2, ">");
  await tab.state("live");
  await tab.page.keyboard.down("p");
  await tab.page.keyboard.down("p");
  await tab.tells("state-text", "Paused");
  await finish(edge);
}

/** The grid has the focus, and the selection stays on its topic when the order changes. */
async function selection(browser) {
  const edge = await start(browser);
  const { tab, script } = edge;
  const names = ["a.one", "a.three", "a.two"];
  names.forEach((name, at) => script.send(announced(FIRST + at, name, EPOCH), tick(FIRST + at, 1, price(9 - at), nowNs())));
  await tab.until(() => document.querySelectorAll(".row:not([hidden])").length === 3);
  await tab.page.locator("#table").focus();
  await tab.page.keyboard.press("Home");
  const selected = () => {
    const table = document.activeElement;
    return document.getElementById(table.getAttribute("aria-activedescendant"))?.querySelector(".name").textContent;
  };
  await tab.until(`(${selected})() === "a.one"`);
  await tab.page.locator('[data-sort="value"]').click();
  await tab.page.locator('[data-sort="value"]').click();
  await tab.page.locator("#table").focus();
  await tab.until(() => document.querySelector('.row[aria-selected="true"]').getAttribute("aria-rowindex") === "4");
  check((await tab.page.evaluate(selected)) === "a.one", "the selection moves with its row");
  await finish(edge);
}

/** A file of the page fails to load: the page says so, and works after a reload. */
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
  check(await tab.page.locator("#broken").isHidden(), "a complete page shows no load error");
  await finish({ tab, script });
}

await run(executablePath, async (browser) => {
  for (const fault of [
    neverWelcomed,
    suspended,
    malformedPayloads,
    longBatches,
    unannouncedGaps,
    absences,
    probes,
    reconnectStorms,
    selection,
    brokenLoad,
  ]) {
    await fault(browser);
    say(`${fault.name} holds`);
  }
});
