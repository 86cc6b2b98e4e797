// page-feeds.mjs CHROMIUM FOLDER: tests how the page shows the feeds of tests/data/feeds.ndjson, which have the shapes of Kraken and
// Bybit: columns, an open row, the filter, the warning about deltas. scripted.mjs plays the server. Prints "NAME holds" for
// each test and "end" last; screenshots go into FOLDER.
import { readFileSync } from "node:fs";
import { check, run, say } from "./browser.mjs";
import { EPOCH, FIRST, finish, nowNs, start } from "./edge.mjs";
import { announced, conflated, tick } from "./scripted.mjs";

const [executablePath, folder] = process.argv.slice(2);
const FEEDS = readFileSync(new URL("../data/feeds.ndjson", import.meta.url), "utf8").trim().split("\n").map((line) => JSON.parse(line));

/** Sends all ticks of the feeds, or those of some topics, in messages of a hundred. Returns the last payload of each topic. */
function replay(script, isWanted = () => true) {
  const ids = new Map();
  const sequences = new Map();
  const last = new Map();
  const frames = [];
  for (const { topic, data } of FEEDS.filter(({ topic }) => isWanted(topic))) {
    if (!ids.has(topic)) {
      ids.set(topic, FIRST + ids.size);
      frames.push(announced(ids.get(topic), topic, EPOCH));
    }
    sequences.set(topic, (sequences.get(topic) ?? 0) + 1);
    last.set(topic, data);
    frames.push(tick(ids.get(topic), sequences.get(topic), JSON.stringify(data), nowNs()));
  }
  while (frames.length > 0) script.send(...frames.splice(0, 100));
  return { ids, sequences, last };
}

/** Texts of the visible rows by topic: `{fields, summary, chip, old}`. */
const rowsOf = () =>
  Object.fromEntries(
    [...document.querySelectorAll(".row:not([hidden])")].map((row) => {
      const text = (selector) => row.querySelector(selector)?.textContent ?? "";
      const fields = [...row.querySelectorAll(".field")].map((cell) => cell.textContent);
      return [row.querySelector(".name").title, { fields, summary: text(".summary .line"), chip: text(".chip"), old: row.querySelectorAll(".old").length }];
    }),
  );
const headersOf = () => [...document.querySelectorAll(".head button")].map((button) => button.textContent);
/** Waits until the page has taken all that was sent, and drawn it. */
async function drawn({ tab, script }) {
  await script.isHeard(tab);
  await tab.page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
}
const shows = (tab, count) => tab.until((count) => document.body.dataset.rows === String(count), count);

/** Fields are in their columns, from arrays and objects; deltas and images look like what they are. */
async function shapes(browser) {
  const edge = await start(browser);
  const { tab, script } = edge;
  const { last } = replay(script);
  await shows(tab, 24);
  await tab.until(() => document.querySelectorAll(".head .field").length === 5);
  check((await tab.page.evaluate(headersOf)).slice(0, 6).join() === "Topic,Bid,Ask,Last,Size,Volume", "the columns are the fields found");
  await tab.page.setViewportSize({ width: 1280, height: 1_400 });
  await tab.until(() => document.querySelectorAll(".row:not([hidden])").length === 24);
  await drawn(edge);
  const rows = await tab.page.evaluate(rowsOf);
  const [, ticker] = last.get("kraken.ticker.ALPHA-USD");
  const shown = rows["kraken.ticker.ALPHA-USD"].fields;
  check(shown.slice(0, 3).join() === [ticker.b[0], ticker.a[0], ticker.c[0]].join(), `a channel array: ${shown}`);
  check(/^\d+ changes?: (bid|ask) /.test(rows["kraken.book.ALPHA-USD"].summary), rows["kraken.book.ALPHA-USD"].summary);
  check(/^\d+ changes?: (buy|sell) /.test(rows["bybit.orderBookL2_25.ALPHAUSDT"].summary), "rows of an orderBookL2 delta");
  const prices = (side) => last.get("bybit.image.ALPHAUSDT").data.filter((row) => row.side === side).map((row) => Number(row.price));
  const image = rows["bybit.image.ALPHAUSDT"].fields.slice(0, 2).map(Number);
  check(image[0] === Math.max(...prices("Buy")) && image[1] === Math.min(...prices("Sell")), `the best of an image: ${image}`);
  const delta = rows["bybit.tickers.ALPHAUSDT"];
  check(delta.chip === "delta" && delta.fields.every((text, at) => at === 3 || text !== ""), `a delta leaves what it does not have: ${delta.fields}`);
  check(Object.values(rows).filter(({ chip }) => chip === "delta").length === 9, "nine topics are marked as deltas");

  // Decimal points of a column are below each other, whatever the decimals.
  const points = await tab.page.evaluate(() =>
    [...document.querySelectorAll(".row:not([hidden]) .value .fraction")]
      .filter(({ textContent }) => textContent !== "")
      .map((fraction) => ({ text: fraction.parentElement.textContent, x: fraction.getBoundingClientRect().left })),
  );
  check(new Set(points.map(({ text }) => text.split(".")[1].length)).size >= 3, "the prices have different decimals");
  const apart = Math.max(...points.map(({ x }) => x)) - Math.min(...points.map(({ x }) => x));
  check(apart < 1, `decimal points are ${apart} pixels apart`);

  for (const colorScheme of ["light", "dark"]) {
    for (const [width, height] of [[1280, 900], [1024, 768], [800, 900], [360, 780]]) {
      await tab.page.emulateMedia({ colorScheme });
      await tab.page.setViewportSize({ width, height });
      await drawn(edge);
      await tab.fits(`${width} pixels wide`);
      await tab.shot(folder, `feeds-${colorScheme}-${width}`, { fullPage: width < 500 });
    }
  }
  await finish(edge);
}

/** A row opens to its payload by mouse and by keyboard, and follows the topic. */
async function opens(browser) {
  const edge = await start(browser);
  const { tab, script } = edge;
  const { page } = tab;
  const { ids, sequences, last } = replay(script, (topic) => topic.startsWith("kraken.ticker"));
  await shows(tab, 3);
  await page.locator(".row:not([hidden])", { hasText: "BRAVO-USD" }).click();
  const shown = () => JSON.parse(document.querySelector(".detail:not([hidden]) .payload").textContent);
  const topic = "kraken.ticker.BRAVO-USD";
  check(JSON.stringify(await page.evaluate(shown)) === JSON.stringify(last.get(topic)), "the whole payload is shown");
  check((await page.locator(".detail .topic").textContent()) === topic, "under the name of the topic");
  check((await page.locator('.row[aria-expanded="true"]').count()) === 1, "the row is expanded");
  const tops = await page.evaluate(() => [".row[aria-expanded='true']", ".detail"].map((selector) => document.querySelector(selector).getBoundingClientRect()).map(({ top, bottom }) => [top, bottom]));
  check(Math.abs(tops[0][1] - tops[1][0]) < 1, "the panel is below its row");
  const bravo = last.get(topic);
  const [first] = bravo[1].c;
  bravo[1].c[0] = "2400.00";
  const update = (price) => {
    bravo[1].c[0] = price;
    sequences.set(topic, sequences.get(topic) + 1);
    script.send(tick(ids.get(topic), sequences.get(topic), JSON.stringify(bravo), nowNs()));
  };
  update("2400.00");
  await tab.until(() => document.querySelector(".detail .payload").textContent.includes('"2400.00"'));
  // The chart's scale holds the values seen: at least the last two, at most those and the first, which is lower.
  check(Number(first) < 2_390, `the first price is ${first}`);
  const reaches = (price) => tab.until((price) => Number(document.querySelector(".detail .high").textContent) >= price, price);
  await reaches(2_400);
  update("2500.00");
  await reaches(2_500);
  const low = Number(await page.locator(".detail .low").textContent());
  check(low <= 2_400 && low > Number(first) - 1_000, `the scale begins at ${low}`);
  check((await page.locator(".curve").getAttribute("aria-label")).startsWith(`Last of ${topic}: between`), "the chart has a text");

  // A checked field is a column, also by keyboard; the URL has it.
  await page.locator('.fields input[value="/1/p/0"]').focus();
  await page.keyboard.press("Space");
  await tab.until(() => [...document.querySelectorAll(".head button")].some((button) => button.textContent === "p.0"));
  await tab.until(() => new URL(location.href).searchParams.getAll("column").at(-1) === "/1/p/0");
  check(await page.locator('.fields input[value="/1/p/0"]').isChecked(), "the field stays checked");
  check(await page.locator('.fields input[value="/1/b/0"]').isChecked(), "the guessed bid is checked too");
  await page.keyboard.press("Escape");
  await tab.until(() => document.querySelector(".detail").hidden && document.activeElement.id === "table");
  await page.keyboard.press("Home");
  await page.keyboard.press("Enter");
  await tab.until(() => document.querySelector(".detail:not([hidden]) .topic")?.textContent === "kraken.ticker.ALPHA-USD");
  await tab.shot(folder, "feeds-open");
  await page.keyboard.press("Enter");
  await tab.until(() => document.querySelector(".detail").hidden);
  await finish(edge);
}

/** Columns and filter come from the URL, and the user's choices go into it. */
async function choices(browser) {
  const edge = await start(browser, { query: "?filter=TICK+bravo&column=ask&column=Vwap%3D/1/p/1&column=nonsense" });
  const { tab, script } = edge;
  const { page } = tab;
  replay(script);
  await shows(tab, 24);
  await tab.tells("listed", "2 of 24 match");
  check((await page.evaluate(headersOf)).slice(0, 3).join() === "Topic,Ask,Vwap", "the columns of the URL");
  await page.locator("#columns").click();
  await page.keyboard.type("bid");
  await page.keyboard.press("Enter");
  await tab.until(() => document.querySelectorAll("#chips li").length === 3);
  await page.keyboard.type("price");
  await page.keyboard.press("Enter");
  await tab.tells("column-error", "Not a field");
  await page.locator("#chips button", { hasText: "Vwap" }).click();
  await tab.until(() => document.querySelectorAll(".head .field").length === 2);
  await tab.until(() => location.search === "?filter=TICK+bravo&column=ask&column=bid");
  // What is typed there is no pattern before it is submitted.
  await page.locator("#topics").fill("not.submitted");
  await page.locator("#filter").fill("nothing like it");
  await page.locator("#no-match").waitFor();
  await page.locator("#filter").fill("");
  await page.locator("#columns-reset").click();
  await tab.until(() => document.querySelectorAll(".head .field").length === 5);
  await tab.until(() => location.search === "");
  await tab.tells("listed", "24");
  await page.locator('[data-sort="volume"]').click();
  check((await page.locator('[aria-sort="descending"]').textContent()) === "Volume", "columns of fields can be sorted by");
  await finish(edge);
}

/** The page warns where conflation breaks deltas, and only there. */
async function warns(browser) {
  const edge = await start(browser, { query: "?rate=0" });
  const { tab, script } = edge;
  const { page } = tab;
  const { ids, sequences } = replay(script);
  await shows(tab, 24);
  // The page counts these after all ticks of the feeds, and shows the count after the warning, if there is one.
  const ticker = "kraken.ticker.ALPHA-USD";
  const after = sequences.get(ticker) + 1;
  script.send(conflated(ids.get(ticker), after, after + 3));
  await tab.until(() => document.getElementById("conflated").textContent === "3");
  check(await page.locator("#deltas").isHidden(), "every delta arrives: only ticks that are whole are conflated");
  const book = "kraken.book.ALPHA-USD";
  const next = sequences.get(book) + 1;
  const change = JSON.stringify(FEEDS.findLast(({ topic }) => topic === book).data);
  script.send(conflated(ids.get(book), next, next + 5), tick(ids.get(book), next + 5, change, nowNs()));
  await tab.tells("deltas-text", "This page fell behind");
  check(await page.locator("#every-tick").isHidden(), "it already asks for every tick");
  check((await page.locator(".chip.broken").count()) >= 1, "the topic is marked");
  await page.locator("#rate").selectOption("5");
  await tab.until(() => location.search === "");
  await script.isPaced(">", 5_000);
  replay(script, (topic) => topic.startsWith("bybit.orderBookL2"));
  await tab.tells("deltas-text", "At 5 ticks/s the server may conflate them");
  script.send(conflated(FIRST, 1_000, 1_005));
  await tab.tells("deltas-text", "At 5 ticks/s the server conflates them");
  await page.locator("#every-tick").click();
  await script.isPaced(">", 0);
  await tab.until(() => location.search === "?rate=0");
  await finish(edge);
}

/** What a peer publishes is text, never markup, and a payload of any size and kind is shown within the bounds. */
async function hostile(browser) {
  const edge = await start(browser);
  const { tab, script } = edge;
  const { page } = tab;
  const markup = `<img src=x onerror="document.title='owned'">`;
  const payloads = [
    [`a.${markup.replaceAll(".", "")}`, JSON.stringify({ price: markup, [markup]: markup, type: markup })],
    ["b.deep", `${"[".repeat(5_000)}1${"]".repeat(5_000)}`],
    ["c.long", JSON.stringify({ price: 1, text: "x".repeat(200_000) })],
    ["d.binary", Buffer.from([0, 1, 2, 253, 254, 255])],
    ["e.broken", '{"price":'],
    ["f.wide", JSON.stringify(Object.fromEntries(Array.from({ length: 5_000 }, (_, at) => [`k${at}`, at])))],
    ["g.keys", '{"__proto__":{"price":7},"constructor":1,"hasOwnProperty":2,"bid":3}'],
  ];
  payloads.forEach(([name, payload], at) => script.send(announced(FIRST + at, name, EPOCH), tick(FIRST + at, 1, payload, nowNs())));
  await shows(tab, payloads.length);
  for (let at = 0; at < payloads.length; at += 1) {
    await page.locator("#table").focus();
    await page.keyboard.press("Home");
    for (let step = 0; step < at; step += 1) await page.keyboard.press("ArrowDown");
    await page.keyboard.press("Enter");
    await tab.until((name) => document.querySelector(".detail:not([hidden]) .topic")?.textContent === name, payloads[at][0]);
    const { length, fields } = await page.evaluate(() => ({
      length: document.querySelector(".payload").textContent.length,
      fields: document.querySelectorAll(".fields li").length,
    }));
    check(length > 0 && length <= (64 << 10) + 100 && fields <= 100, `${payloads[at][0]}: ${length} characters, ${fields} fields`);
    await page.keyboard.press("Enter");
  }
  check((await page.locator("#table img").count()) === 0 && (await page.title()) === "tickcast", "markup stays text");
  check((await page.locator(".row", { hasText: "binary, 6 bytes" }).count()) === 1, "binary");
  check((await page.locator(".row", { hasText: "invalid JSON" }).count()) === 1, "broken");
  await tab.shot(folder, "feeds-hostile");
  await finish(edge);
}

await run(executablePath, async (browser) => {
  for (const feed of [shapes, opens, choices, warns, hostile]) {
    await feed(browser);
    say(`${feed.name} holds`);
  }
});
