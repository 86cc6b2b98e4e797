// page-units.test.mjs: what the page makes of payloads, without a browser: `node --test tests/clients/page-units.test.mjs`.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Address, Chooser, URL_MS } from "../../src/server/page/chooser.js";
import { columnsOfRoles, parseColumn, parseColumns, primaryOf, roundedFor, COLUMNS_MAX } from "../../src/server/page/columns.js";
import { PUBLISHED_MAX, formatPointer, look, mayBeRespelled, numberOf, parsePointer, resolve, scalarText, scalarsOf, withDigits } from "../../src/server/page/fields.js";
import { hexOf, payloadText, SHOWN_BYTES_MAX } from "../../src/server/page/detail.js";
import { History, POINTS_MAX, scaleOf } from "../../src/server/page/history.js";
import { Market } from "../../src/server/page/market.js";
import { deltaWarning, offsetText, Stats } from "../../src/server/page/stats.js";

/** The pointers of the fields found, by role. */
const pointersOf = (data) => Object.fromEntries(Object.entries(look(data).paths).map(([role, tokens]) => [role, formatPointer(tokens)]));

const KRAKEN_TICKER = [340, { a: ["5525.4", 1, "1.0"], b: ["5525.1", 1, "1.0"], c: ["5525.2", "0.0039"], v: ["2634.1", "3591.1"], o: ["5760.7", "5763.4"] }, "ticker", "XBT/USD"];
const BYBIT_TICKER = { topic: "tickers.BTCUSDT", type: "delta", cs: 1, ts: 2, data: { symbol: "BTCUSDT", lastPrice: "17216.00", bid1Price: "17215.50", ask1Price: "17216.00", volume24h: "91705.276" } };
const row = (price, side, size) => ({ price, symbol: "BTCUSD", id: price * 10_000, side, size });

test("a JSON pointer resolves as RFC 6901 says", () => {
  const data = { foo: ["bar", "baz"], "": 0, "a/b": 1, "m~n": 8, " ": 7 };
  for (const [pointer, value] of [["", data], ["/foo/0", "bar"], ["/", 0], ["/a~1b", 1], ["/m~0n", 8], ["/ ", 7]]) {
    assert.deepEqual(resolve(data, parsePointer(pointer)), value, pointer);
    assert.equal(formatPointer(parsePointer(pointer)), pointer);
  }
  for (const pointer of ["/foo/2", "/foo/01", "/foo/-", "/foo/length", "/constructor", "/__proto__", "/foo/bar"]) {
    assert.equal(resolve(data, parsePointer(pointer)), undefined, pointer);
  }
  for (const text of ["foo", "/a~2", "/a~", `/${"a".repeat(300)}`]) assert.equal(parsePointer(text), null, text);
});

test("names in snake case, camel case and other cases are the same fields", () => {
  const wanted = (bid, ask, last, size, volume) => ({ bid, ask, last, size, volume });
  assert.deepEqual(pointersOf({ best_bid: "1", best_ask: "2", last_price: "1.5", last_size: "3", volume_24h: "9" }), wanted("/best_bid", "/best_ask", "/last_price", "/last_size", "/volume_24h"));
  assert.deepEqual(pointersOf({ bestBid: 1, bestAsk: 2, lastPrice: 1.5, lastQty: 3, volume24h: 9 }), wanted("/bestBid", "/bestAsk", "/lastPrice", "/lastQty", "/volume24h"));
  assert.deepEqual(pointersOf({ BidPx: 1, AskPx: 2, LastPx: 1.5, Qty: 3, Vol: 9 }), wanted("/BidPx", "/AskPx", "/LastPx", "/Qty", "/Vol"));
  assert.deepEqual(pointersOf({ bid: { price: 1, size: 2 }, ask: { price: 3, size: 4 } }), { bid: "/bid/price", ask: "/ask/price" });
});

test("fields are found in channel arrays, envelopes and rows of trades", () => {
  assert.deepEqual(pointersOf(KRAKEN_TICKER), { bid: "/1/b/0", ask: "/1/a/0", last: "/1/c/0", size: "/1/c/1", volume: "/1/v/1", open: "/1/o/1" });
  assert.deepEqual(pointersOf([0, [["5541.2", "0.15", "15.3", "s", "l", ""], ["5541.3", "0.2", "15.4", "s", "l", ""]], "trade", "XBT/USD"]), { last: "/1/1/0", size: "/1/1/1" });
  assert.deepEqual(pointersOf([0, ["5698.4", "5700.0", "15.2", "1.01", "0.98"], "spread", "XBT/USD"]), { bid: "/1/0", ask: "/1/1" });
  assert.deepEqual(pointersOf(BYBIT_TICKER), { bid: "/data/bid1Price", ask: "/data/ask1Price", last: "/data/lastPrice", volume: "/data/volume24h" });
  assert.deepEqual(pointersOf({ topic: "trade.BTCUSD", data: [{ side: "Sell", size: 1, price: 8098, trade_id: "x" }] }), { last: "/data/0/price", size: "/data/0/size" });
  assert.deepEqual(pointersOf({ channel: "ticker", type: "update", data: [{ symbol: "ALGO/USD", bid: 0.1, ask: 0.2, last: 0.15, volume: 99 }] }), { bid: "/data/0/bid", ask: "/data/0/ask", last: "/data/0/last", volume: "/data/0/volume" });
  assert.deepEqual(pointersOf({ u: 1, s: "BNBUSDT", b: "25.35", B: "31.2", a: "25.36", A: "40.6" }), { bid: "/b", ask: "/a" });
});

test("of an order book's image the best bid and ask are shown, wherever they are", () => {
  const data = [row(2998, "Buy", 1), row(2999, "Buy", 2), row(3002, "Sell", 3), row(3001, "Sell", 4)];
  const image = { topic: "orderBookL2_25.BTCUSD", type: "snapshot", data };
  assert.deepEqual(pointersOf(image), { bid: "/data/1/price", ask: "/data/3/price" });
  assert.equal(look(image).isDelta, false);
  assert.deepEqual(pointersOf({ type: "snapshot", bids: [["10.1", "1"], ["10.0", "2"]], asks: [["10.2", "3"]] }), { bid: "/bids/0/0", ask: "/asks/0/0" });
  assert.deepEqual(pointersOf([0, { as: [["5541.3", "2.5", "1"]], bs: [["5541.2", "1.5", "1"]] }, "book-100", "XBT/USD"]), { ask: "/1/as/0/0", bid: "/1/bs/0/0" });
});

test("deltas of books are told apart and summed up, and none of their levels passes for the best", () => {
  for (const [summary, data] of [
    ["2 changes: sell gone @ 3001, buy 8 @ 2999", { topic: "orderBookL2_25.X", type: "delta", data: { delete: [row(3001, "Sell")], update: [row(2999, "Buy", 8)], insert: [] } }],
    ["1 change: sell 100 @ 87990000", { table: "orderBookL2", action: "update", data: [{ symbol: "XBTUSD", id: 87990000, side: "Sell", size: 100 }] }],
    ["1 change: buy gone @ 1.20", { type: "l2update", product_id: "BTC-USD", changes: [["buy", "1.20", "0"]], time: "x" }],
    ["2 changes: bid 10 @ 0.0024, ask 100 @ 0.0026", { e: "depthUpdate", E: 1, s: "BNBBTC", U: 157, u: 160, b: [["0.0024", "10"]], a: [["0.0026", "100"]] }],
    ["1 change: ask 2.50 @ 5541.30", [0, { a: [["5541.30", "2.50", "15.4"]], c: "974942666" }, "book-10", "XBT/USD"]],
    ["1 change: bid 1098 @ 0.5657", { channel: "book", type: "update", data: [{ symbol: "M/USD", bids: [{ price: 0.5657, qty: 1098 }], asks: [], checksum: 1 }] }],
    ["1 change: bid 1 @ 9", { arg: { channel: "books" }, action: "update", data: [{ bids: [["9", "1", "0", "4"]], asks: [] }] }],
    ['1 change: [{"op":"replace", "path":"/a", "value":1}]', [{ op: "replace", path: "/a", value: 1 }]],
  ]) {
    const found = look(data);
    assert.deepEqual([found.isDelta, found.paths, found.summary], [true, {}, summary]);
  }
});

test("updates that are whole, trades and images are no deltas", () => {
  for (const data of [
    KRAKEN_TICKER,
    { channel: "ticker", type: "update", data: [{ bid: 1, ask: 2, last: 1.5 }] },
    { table: "trade", action: "insert", data: [{ side: "Buy", size: 1, price: 8, trdMatchID: "a" }] },
    { type: "ticker", price: "1", best_bid: "0.9", best_ask: "1.1" },
    [1, 2, 3],
    "delta",
    7,
    null,
  ]) {
    assert.equal(look(data).isDelta, false, JSON.stringify(data));
  }
});

test("payloads without fields are summed up as what they are", () => {
  for (const [data, summary] of [
    [[1, 2, 3], "array of 3: [1, 2, 3]"],
    [[], "array of 0: []"],
    [{}, "{}"],
    [{ a: { b: "x" } }, '{"a":{"b":"x"}}'],
    ["text", "text"],
    [null, "null"],
    [true, "true"],
  ]) {
    assert.equal(look(data).summary, summary);
  }
  assert.deepEqual(pointersOf({ seq: 4, ts: 17, temperature: 21.5 }), { last: "/temperature" }, "an identifier is no value");
  assert.deepEqual(pointersOf(7), { last: "" });
  for (const [data, isPrice] of [[7, false], [{ value: 7 }, false], [{ bpm: 7 }, false], [{ t: { x: 7 } }, false], [{ price: 7 }, true], [KRAKEN_TICKER, true]]) {
    assert.equal(look(data).isPrice, isPrice, "a change of a price is a percentage");
  }
  assert.ok(look("😀".repeat(200)).summary.length <= 160);
  assert.ok(look("😀".repeat(200)).summary.isWellFormed(), "no character is cut in half");
});

test("payloads made to be slow or deep cost no more than the bounds", () => {
  let deep = 1;
  for (let level = 0; level < 3_000; level += 1) deep = { a: [deep] };
  const wide = Object.fromEntries(Array.from({ length: 50_000 }, (_, at) => [`k${at}`, { bid: { bid: {} } }]));
  const levels = { type: "delta", bids: Array.from({ length: 100_000 }, (_, at) => [at, at]) };
  for (const data of [deep, wide, levels, JSON.parse('{"__proto__":{"price":1},"constructor":2,"toString":{"bid":3}}')]) {
    const { summary } = look(data);
    assert.ok(summary.length <= 160);
    assert.ok(scalarsOf(data, 100).fields.length <= 100);
  }
  assert.equal(look(levels).summary.startsWith("2048 changes: "), true, "levels are counted up to the bound");
  assert.equal(resolve({}, ["__proto__"]), undefined);
});

test("numbers are shown as they were published", () => {
  for (const [value, text] of [["0.4810", "0.4810"], [1e-7, "0.0000001"], [1.5e-9, "0.0000000015"], [1e21, "1e+21"], [0, "0"], ["1e5", "1e5"], [true, "true"], [{ a: 1 }, "{…}"], [[1, 2], "[2]"], [undefined, ""]]) {
    assert.equal(scalarText(value), text);
  }
  for (const [value, number] of [["0.5", 0.5], [".5", 0.5], ["-3", -3], ["", NaN], [" ", NaN], ["0x10", NaN], ["1,5", NaN], ["Infinity", NaN], [null, NaN], [[], NaN]]) {
    assert.deepEqual(numberOf(value), number, String(value));
  }
  const [volume] = parseColumns(["volume"]);
  assert.equal(roundedFor(volume, "229049.74061307"), "229049.74");
  assert.equal(roundedFor(volume, "0.000123456"), "0.0001235");
  assert.equal(roundedFor(parseColumn("last"), "229049.74061307"), "229049.74061307", "prices are never rounded");
});

test("columns are roles and pointers, with a label if one is given", () => {
  assert.deepEqual(parseColumns(["bid", "last", "/data/0/price", "Mid=/data/mid"]).map(({ key, label, text }) => [key, label, text]), [
    ["bid", "Bid", "bid"],
    ["value", "Last", "last"],
    ["/data/0/price", "price", "/data/0/price"],
    ["/data/mid", "Mid", "Mid=/data/mid"],
  ]);
  assert.equal(parseColumn("/1/a/0").label, "a.0");
  for (const text of ["", "price", "=/a", "a=b", "/a~5"]) assert.equal(parseColumn(text), null, text);
  const many = Array.from({ length: 20 }, (_, at) => `/${at}`);
  assert.equal(parseColumns([...many, ...many]).length, COLUMNS_MAX);
  assert.equal(parseColumns(["/a", "X=/a"]).length, 1, "a pointer has one column");
  assert.deepEqual(columnsOfRoles(new Set()).map(({ key }) => key), ["value"]);
  assert.equal(primaryOf(parseColumns(["bid", "last"])).key, "value");
  assert.equal(primaryOf(parseColumns(["/x", "bid"])).key, "/x");
});

test("a scale has round numbers around all values", () => {
  for (const [values, low, high, decimals] of [
    [[41_247.1, 41_254.7], 41_245, 41_255, 0],
    [[0.48121, 0.48131], 0.4812, 0.4814, 4],
    [[-3, 3], -5, 5, 0],
    [[0, 0], -1, 1, 0],
    [[NaN, 5, NaN, 7], 5, 7, 0],
  ]) {
    const scale = scaleOf(values);
    const close = (a, b) => Math.abs(a - b) < 1e-9;
    assert.ok(close(scale.low, low) && close(scale.high, high) && scale.decimals === decimals, JSON.stringify([values, scale]));
  }
  assert.equal(scaleOf([]), null);
  assert.equal(scaleOf([NaN, Infinity]), null);
  for (let at = 0; at < 2_000; at += 1) {
    const values = [Math.sin(at) * 10 ** (at % 17), Math.cos(at) * 10 ** (at % 13)];
    const { low, high } = scaleOf(values);
    const margin = (high - low) * 1e-6;
    assert.ok(low <= Math.min(...values) + margin && high >= Math.max(...values) - margin, String(values));
  }
});

test("a history keeps the last points, oldest first", () => {
  const history = new History();
  history.push(NaN);
  assert.deepEqual(history.values(), [], "nothing is kept before the first number");
  for (let at = 0; at < POINTS_MAX + 5; at += 1) history.push(at);
  assert.deepEqual(history.values(), Array.from({ length: POINTS_MAX }, (_, at) => at + 5));
});

test("a payload is shown whole, up to the bound", () => {
  const text = (value, isJson = true) => {
    const bytes = new TextEncoder().encode(typeof value === "string" ? value : JSON.stringify(value));
    return payloadText(bytes, isJson, isJson && typeof value !== "string");
  };
  assert.equal(text({ a: [1, "x"], b: {} }), '{\n  "a": [1, "x"],\n  "b": {}\n}');
  assert.equal(text("{broken"), "{broken");
  const long = text("x".repeat(SHOWN_BYTES_MAX + 1_500));
  assert.ok(long.length < SHOWN_BYTES_MAX + 100 && long.endsWith("\n… 1,500 more bytes"));
  let deep = 1;
  for (let level = 0; level < 1_000; level += 1) deep = [deep];
  assert.equal(text(deep), JSON.stringify(deep), "nested too deeply to be indented");
  assert.equal(hexOf(new TextEncoder().encode("ECG\0")), `0000  45 43 47 00${" ".repeat(36)}  ECG.`);
});

test("an indented payload has the digits, keys and texts published, in their order", () => {
  const indented = (text) => payloadText(new TextEncoder().encode(text), true, true);
  for (const text of [
    '{"id":12345678901234567890,"price":1.50,"small":1.0E-7,"zero":-0.0}',
    '{"10":1,"9":2,"a":3,"9":4}',
    '{"text":"a  b, [c]: {\\"d\\"} \\\\","\\u0041":"\\ud83d\\ude00","":[]}',
    '[{"a":[[],{}]},true,null," "]',
    "12345678901234567890.10",
  ]) {
    const shown = indented(text);
    // White space within texts is theirs: none of it is beside a line break or a bracket here.
    assert.equal(shown.replace(/\n */g, "").replaceAll('": ', '":').replace(/(?<=[\]}"\dle]), (?=["[{\dtn-])/g, ","), text);
    assert.deepEqual(JSON.parse(shown), JSON.parse(text));
  }
  assert.equal(indented('{"b" : [ 1.0 ,2 ]\n}'), '{\n  "b": [1.0, 2]\n}', "white space is ours");
});

test("fields have the digits published, and values that sort", () => {
  const spelled = ["12345678901234567890", "1.50", "-0.0", "2.0", "0.00000012", "9007199254740993", "1.2345678901234567e3", "0.30000000000000004441", "0.29999999999999999", "12345678.99999999999", "0.5000000000000000001", "0.00"];
  for (const number of spelled) {
    const text = `{"n":"x","p":[${number}],"s":"${number}0 \\" ${number}"}`;
    const data = JSON.parse(text);
    assert.ok(mayBeRespelled(text, data.p[0]), number);
    assert.deepEqual(withDigits(text, data), { ...data, p: [number] });
  }
  for (const number of ["0.5", "7", "-31.25", "1e5", "1.5e-9", "1700000000123"]) {
    const text = `[${number}]`;
    assert.deepEqual(withDigits(text, JSON.parse(text)), [Number(number)], number);
  }
  const long = `[1.50,"${"x".repeat(PUBLISHED_MAX)}"]`;
  assert.deepEqual(withDigits(long, JSON.parse(long))[0], 1.5, "in a long text, as a double has it");
  const market = new Market();
  const row = market.row("a");
  market.tick(row, frameOf(1, '{"bid":1.50,"ask":2,"price":9007199254740993,"volume":10.000001,"n":1e-7}'));
  market.chooseColumns(parseColumns(["bid", "ask", "last", "volume", "/n"]));
  assert.deepEqual(shown(market, row), { bid: "1.50", ask: "2", value: "9007199254740993", volume: "10.00", "/n": "0.0000001" });
  assert.deepEqual([row.fields.get("bid").value, row.value], [1.5, 9007199254740992]);
});

/** A decoded frame, as wire.js gives it. */
const frameOf = (sequence, data, { isSnapshot = false } = {}) => {
  const bytes = new TextEncoder().encode(typeof data === "string" ? data : JSON.stringify(data));
  return { sequence, flags: 1 | (isSnapshot ? 2 : 0), bytes: () => bytes, u64: () => 1.7e18 };
};

/** The texts of a row's fields. */
const shown = (market, row) => {
  row.parse(market);
  market.growColumns();
  row.parse(market);
  return Object.fromEntries([...row.fields].map(([key, { text, isOld }]) => [key, isOld ? `(${text})` : text]));
};

test("columns appear as fields are found, and a delta leaves what it does not have, marked as old", () => {
  const market = new Market();
  const row = market.row("bybit.tickers.X");
  market.tick(row, frameOf(1, { ...BYBIT_TICKER, type: "snapshot" }));
  assert.deepEqual(shown(market, row), { bid: "17215.50", ask: "17216.00", value: "17216.00", volume: "91705.28" });
  assert.deepEqual(market.columns.map(({ key }) => key), ["bid", "ask", "value", "volume"]);
  market.tick(row, frameOf(2, { ...BYBIT_TICKER, data: { symbol: "X", bid1Price: "17215.00" } }));
  assert.deepEqual(shown(market, row), { bid: "17215.00", ask: "(17216.00)", value: "(17216.00)", volume: "(91705.28)" });
  // Deltas are read one by one, although nothing is drawn in between.
  market.tick(row, frameOf(3, { ...BYBIT_TICKER, data: { lastPrice: "17220.00" } }));
  market.tick(row, frameOf(4, { ...BYBIT_TICKER, data: { bid1Price: "17219.00" } }));
  assert.deepEqual(shown(market, row), { bid: "17219.00", ask: "(17216.00)", value: "(17220.00)", volume: "(91705.28)" });
  // Nor does one without any of the fields change what they are.
  market.tick(row, frameOf(5, { ...BYBIT_TICKER, data: { symbol: "X", openInterest: 7 } }));
  assert.deepEqual(shown(market, row), { bid: "(17219.00)", ask: "(17216.00)", value: "(17220.00)", volume: "(91705.28)" });
  assert.deepEqual([row.summary, row.value], ["", 17220]);
  assert.deepEqual(market.deltas(), { names: ["bybit.tickers.X"], conflated: 0 });
  market.skip(row, false, 6, 10);
  assert.equal(market.deltas().conflated, 4);
});

test("what a delta leaves is there when its column appears later", () => {
  const market = new Market();
  const row = market.row("bybit.tickers.X");
  // Nothing is drawn between the image and the delta, so no column has appeared yet.
  market.tick(row, frameOf(1, { ...BYBIT_TICKER, type: "snapshot" }));
  market.tick(row, frameOf(2, { ...BYBIT_TICKER, data: { bid1Price: "17215.00" } }));
  market.tick(row, frameOf(3, { ...BYBIT_TICKER, data: { lastPrice: "17220.00" } }));
  assert.deepEqual(shown(market, row), { bid: "(17215.00)", ask: "(17216.00)", value: "17220.00", volume: "(91705.28)" });
});

test("the first delta of a topic is read, however late it is, and the payload before it", () => {
  const market = new Market();
  const row = market.row("bybit.tickers.X");
  const ticks = Array.from({ length: 8 }, (_, at) => ({ ...BYBIT_TICKER, type: "snapshot", data: { bid1Price: `${at}`, ask1Price: `${at}`, lastPrice: `${at}` } }));
  ticks.push({ ...BYBIT_TICKER, data: { bid1Price: "20" } }, { ...BYBIT_TICKER, data: { lastPrice: "21" } });
  // Nothing is drawn in between.
  ticks.forEach((data, at) => market.tick(row, frameOf(at + 1, data)));
  assert.deepEqual(shown(market, row), { bid: "(20)", ask: "(7)", value: "21" });
});

test("payloads that only look like deltas with some fields are read on arrival up to a bound", () => {
  const market = new Market();
  const [book, plain] = [market.row("book"), market.row("plain")];
  const change = { topic: "orderBookL2_25.X", type: "delta", data: { delete: [row(3001, "Sell")], update: [], insert: [] } };
  const reads = { book: 0, plain: 0 };
  for (let at = 1; at <= 100; at += 1) {
    market.tick(book, frameOf(at, change));
    market.tick(plain, frameOf(at, { type: "update", price: at, pad: "x".repeat(8_192), last: "delta" }));
    for (const { name, isParsed } of [book, plain]) reads[name] += isParsed;
  }
  assert.deepEqual(reads, { book: 16, plain: 4 });
});

test("a payload that is whole leaves nothing of the one before", () => {
  const market = new Market();
  const row = market.row("a");
  market.tick(row, frameOf(1, { bid: 1, ask: 2 }));
  assert.deepEqual(shown(market, row), { bid: "1", ask: "2" });
  market.tick(row, frameOf(2, { bid: 3 }));
  assert.deepEqual(shown(market, row), { bid: "3" });
  market.tick(row, frameOf(3, "{broken"));
  assert.deepEqual([shown(market, row), row.summary], [{}, "invalid JSON"]);
});

test("chosen columns replace the guessed ones and are sorted by", () => {
  const market = new Market();
  for (const [at, mid] of [[1, 30], [2, 20], [3, 100]]) market.tick(market.row(`t${at}`), frameOf(1, { price: at, book: { mid } }));
  market.chooseColumns(parseColumns(["/book/mid"]));
  market.sortBy("/book/mid");
  market.sort();
  assert.deepEqual(market.order.map(({ name }) => name), ["t3", "t1", "t2"]);
  market.chooseColumns(null);
  market.sort();
  assert.deepEqual(market.order.map(({ name }) => name), ["t1", "t2", "t3"], "a column that is gone is not sorted by");
  market.row("t1").parse(market);
  assert.equal(market.row("t1").value, 1);
});

test("a change stays when columns change without a tick, and is anew when its column is another", () => {
  const market = new Market();
  const row = market.row("a");
  const changeOf = () => (row.parse(market), [row.change, row.changeText]);
  for (const [at, value] of [3, 5].entries()) market.tick(row, frameOf(at + 1, { value, count: 8 }));
  assert.deepEqual(changeOf(), [2, "+2"]);
  market.chooseColumns(parseColumns(["last", "/count"]));
  assert.deepEqual(changeOf(), [2, "+2"], "a column is added");
  market.chooseColumns(parseColumns(["/count"]));
  assert.deepEqual(changeOf(), [0, "0"], "the change is of another column");
  market.tick(row, frameOf(3, { value: 5, count: 9 }));
  assert.deepEqual(changeOf(), [1, "+1"]);
  // A restarted server counts from 1 again: the same sequence is another payload.
  row.reset(true);
  market.tick(row, frameOf(3, { value: 5, count: 13 }));
  assert.deepEqual(changeOf(), [4, "+4"]);
});

/** The parts of a Chooser, as far as it needs them without a browser; `events` holds its handlers, and `focused` counts. */
function chooserParts() {
  const part = (name) => ({
    value: "",
    textContent: "",
    hidden: true,
    addEventListener: (event, handle) => (parts.events[`${name} ${event}`] = handle),
    setAttribute: () => {},
    focus: () => (parts.focused += 1),
  });
  const parts = { events: {}, focused: 0 };
  for (const name of ["toggle", "panel", "chips", "form", "input", "error", "reset"]) parts[name] = part(name);
  return parts;
}

/** A Chooser of a market with one topic, whose payload this is. */
function chooserOf(data) {
  const market = new Market();
  const row = market.row("a");
  market.tick(row, frameOf(1, data));
  const parts = chooserParts();
  return { market, row, parts, chooser: new Chooser(market, parts, () => {}) };
}

test("a field is refused with its reason: it is shown already, or its pointer is too long", () => {
  const long = `/${"k".repeat(256)}`;
  const { market, row, parts, chooser } = chooserOf({ price: 1, [long.slice(1)]: 2, b: 3 });
  chooser.toggle(long, row);
  assert.deepEqual([parts.error.textContent, parts.error.hidden], ["This pointer is too long.", false]);
  chooser.toggle("/b", row);
  assert.equal(parts.error.hidden, true);
  parts.input.value = "/b";
  parts.events["form submit"]({ preventDefault() {} });
  assert.equal(parts.error.textContent, "This column is in the table.");
  assert.deepEqual(market.columns.map(({ key }) => key), ["value", "/b"]);
});

test("the keys that a pointer names may begin and end with spaces; what is typed is trimmed", () => {
  const { market, row, parts, chooser } = chooserOf({ "bid ": 1, " ": 2, c: 3 });
  for (const pointer of ["/bid ", "/ "]) {
    chooser.toggle(pointer, row);
    assert.ok(chooser.isShown(pointer, row), pointer);
  }
  parts.input.value = " C = /c ";
  parts.events["form submit"]({ preventDefault() {} });
  assert.equal(parts.error.textContent.startsWith("Not a field"), true, "a space before the pointer is none");
  parts.input.value = " C =/c ";
  parts.events["form submit"]({ preventDefault() {} });
  row.parse(market);
  assert.deepEqual(market.columns.map(({ key, label }) => [key, label]), [["value", "Last"], ["/bid ", "bid "], ["/ ", " "], ["/c", "C"]]);
  assert.deepEqual([...row.fields].filter(([key]) => key.startsWith("/")).map(([key, { text }]) => [key, text]), [["/bid ", "1"], ["/ ", "2"], ["/c", "3"]]);
  const query = new URLSearchParams();
  chooser.store(query);
  const again = chooserOf({});
  again.chooser.load(new URLSearchParams(`${query}`));
  assert.deepEqual(again.market.columns, market.columns, "the URL has them");
});

test("a refused field leaves the focus in the open row", () => {
  const { row, parts, chooser } = chooserOf({});
  chooser.toggle(`/${"k".repeat(256)}`, row);
  assert.deepEqual([parts.panel.hidden, parts.focused], [false, 0], "the reason is shown");
  parts.events["toggle click"]();
  assert.deepEqual([parts.panel.hidden, parts.focused], [true, 0]);
  parts.events["toggle click"]();
  assert.deepEqual([parts.panel.hidden, parts.focused], [false, 1], "the button moves it into the panel");
});

test("topics are found by words in any order and case", () => {
  const market = new Market();
  for (const name of ["kraken.ticker.BTC-USD", "kraken.book.BTC-USD", "bybit.ticker.ETHUSDT"]) market.row(name);
  const found = (text) => {
    market.filter(text);
    market.sort();
    return market.order.map(({ name }) => name);
  };
  assert.deepEqual(found("btc KRAK"), ["kraken.book.BTC-USD", "kraken.ticker.BTC-USD"]);
  assert.deepEqual(found("book"), ["kraken.book.BTC-USD"]);
  assert.deepEqual(found("nothing"), []);
  assert.equal(found("  ").length, 3);
});

test("kept payloads have a bound: beyond it they are read on arrival", () => {
  const market = new Market();
  const large = JSON.stringify({ price: 5, pad: "x".repeat(8 << 20) });
  for (let at = 0; at < 6; at += 1) market.tick(market.row(`t${at}`), frameOf(1, large));
  const kept = [...market.rows.values()].filter(({ payload }) => payload !== null).length;
  assert.equal(kept, 3, "of 8 MiB and a little, three are kept in 32 MiB");
  assert.equal(market.row("t5").fields.get("value").text, "5");
  market.clear();
  market.tick(market.row("again"), frameOf(1, large));
  assert.notEqual(market.row("again").payload, null, "what is cleared makes room");
});

test("every topic of the feeds in tests/data has fields or is a delta", () => {
  const market = new Market();
  const sequences = new Map();
  const lines = readFileSync(new URL("../data/feeds.ndjson", import.meta.url), "utf8").trim().split("\n");
  const deltas = new Set();
  for (const line of lines) {
    const { topic, data } = JSON.parse(line);
    const sequence = (sequences.get(topic) ?? 0) + 1;
    sequences.set(topic, sequence);
    const row = market.row(topic);
    market.tick(row, frameOf(sequence, data));
    row.parse(market);
    market.growColumns();
    if (row.isDelta) deltas.add(topic.split(".").slice(0, 2).join("."));
    else row.parse(market), assert.ok(row.fields.size > 0, line);
  }
  assert.deepEqual([...deltas].sort(), ["bybit.orderBookL2_25", "bybit.tickers", "kraken.book"]);
  assert.deepEqual(market.columns.map(({ key }) => key), ["bid", "ask", "value", "size", "volume"]);
});

test("the page warns of changes that are missing, or may be, and only of those", () => {
  const one = ["a.book"];
  for (const [names, conflated, rate, text] of [
    [[], 0, 5, ""],
    [one, 0, 0, ""],
    [one, 0, 5, "a.book publishes deltas. At 5 ticks/s the server may conflate them, so changes may be missing here."],
    [one, 3, 1, "a.book publishes deltas. At 1 tick/s the server conflates them, so changes are missing here."],
    [["a", "b"], 3, 0, "2 topics publish deltas. This page fell behind, and the server conflated some, so changes are missing here."],
  ]) {
    assert.equal(deltaWarning({ names, conflated }, rate), text);
  }
});

test("the URL is written at once, then at most every 500 ms, and never stays behind", (context) => {
  context.mock.timers.enable({ apis: ["setTimeout"] });
  const written = [];
  let text = "";
  const address = new Address(() => written.push(text));
  const type = (next) => ((text = next), address.store());
  type("b");
  assert.deepEqual(written, ["b"]);
  for (const next of ["bt", "btc", "btc "]) type(next);
  context.mock.timers.tick(URL_MS - 1);
  assert.deepEqual(written, ["b"]);
  context.mock.timers.tick(1);
  assert.deepEqual(written, ["b", "btc "], "the last of them");
  type("btc u");
  address.flush();
  assert.deepEqual(written.at(-1), "btc u", "leaving the page");
  for (let at = 0; at < 30_000; at += 10) {
    type(`${at}`);
    context.mock.timers.tick(10);
  }
  assert.ok(written.length <= 4 + 30_000 / URL_MS, `${written.length} in 30 s`);
  context.mock.timers.tick(URL_MS);
  assert.equal(written.at(-1), "29990");
  context.mock.timers.tick(10 * URL_MS);
  const { length } = written;
  type("x");
  assert.equal(written.length, length + 1, "at once again");
});

test("a clock offset is shown with its error, or not at all", () => {
  for (const [offset, error, text] of [
    [NaN, NaN, "–"],
    [5, NaN, "–"],
    [0.4, 1.2, "0 ± 1.2 ms"],
    [-0.4, 1.2, "0 ± 1.2 ms"],
    [7.26, 1.2, "+7.3 ± 1.2 ms"],
    [-250.4, 31, "−250 ± 31 ms"],
    [61_000, 1.2, "+61.0 ± 0.1 s"],
  ]) {
    assert.equal(offsetText(offset, error), text);
  }
  const stats = new Stats();
  // The server's clock is 100 ms behind; the fastest delivery takes 4 ms, the fastest round trip 6 ms.
  for (const delivery of [9, 4, 7]) stats.tick(1_000_100 + delivery, 1_000_000e6, 1_000_000e6, true);
  stats.second(NaN);
  assert.ok(Number.isNaN(stats.offsetMs) && Number.isNaN(stats.offsetErrorMs), "without a round trip the error is unknown");
  stats.second(6);
  assert.deepEqual([stats.offsetMs, stats.offsetErrorMs], [101, 4]);
  assert.ok(Math.abs(stats.offsetMs - 100) <= stats.offsetErrorMs);
});
