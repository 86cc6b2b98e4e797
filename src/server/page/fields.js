// fields.js: what a payload says: the fields that the table shows, by JSON pointer, and whether it is a delta. No DOM.

/** Fields that are guessed from their names, in the order of their columns. */
export const ROLES = ["bid", "ask", "last", "size", "volume"];

/** Bounds of the search for names in one payload. */
const DEPTH_MAX = 4;
const NODES_MAX = 64;
const KEYS_MAX = 64;
const ELEMENTS_MAX = 4;
const LEVELS_MAX = 2_048;
const TEXT_MAX = 32;
const SUMMARY_MAX = 160;
const POINTER_MAX = 256;

/** Names in lower case and without separators, so that `best_bid`, `bestBid` and `BestBid` are one; the first found is taken. */
const NAMES = {
  bid: ["bid", "bestbid", "bidprice", "bestbidprice", "bidpx", "bid1price", "highestbid", "bp", "bids", "bs"],
  ask: ["ask", "bestask", "askprice", "bestaskprice", "askpx", "ask1price", "lowestask", "offer", "bestoffer", "ap", "asks", "as"],
  last: ["price", "last", "lastprice", "lasttradedprice", "lasttradeprice", "lastpx", "tradeprice", "px", "close", "value", "mid"],
  size: ["lastsize", "lastqty", "lastquantity", "lastsz", "tradesize", "size", "qty", "quantity", "amount", "sz"],
  volume: ["volume", "volume24h", "vol", "vol24h", "basevolume", "dayvolume", "totalvolume", "quotevolume"],
  open: ["open24h", "open", "openprice", "prevprice24h"],
};
/** Names of values that are no prices: a change of theirs is a difference, not a percentage. */
const NOT_PRICES = new Set(["value", "v"]);
const ROLE_OF = new Map(Object.entries(NAMES).flatMap(([role, names]) => names.map((name, rank) => [name, { role, rank }])));
/** Values that are shown if nothing better has a name. */
const PLAIN = ["bpm", "rate", "n"];
/** Numbers that say which tick it is, not what it says. */
const IDENTIFIES = /^(at|topic|cs|ts|nonce|checksum|due|u|e|t)$|(id|seq|sequence|time|timestamp|_at|_ns|_ms|_us|_e6|_e9)$/;
/** Keys whose texts tell a payload's kind. */
const KIND_KEYS = ["type", "action", "event", "e", "channel", "table", "topic", "stream", "op", "update_type", "updateType", "ch"];

const STRONG_WORDS = "(delta|l2_?update|diff|incremental|patch|depth_?update|book_?delta)";
const STRONG_DELTA = new RegExp(`^${STRONG_WORDS}$`, "i");
const QUOTED_STRONG = new RegExp(`"${STRONG_WORDS}"`, "i");
/** Words of a delta, if the payload holds book levels: a ticker's "update" is whole. */
const WEAK_DELTA = /^(update|updated|insert|delete|change|changes|book_?update|ob_?update)$/i;
const TRADES = /trade|match|fill|exec|liquidat/i;
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const own = (object, key) => (Object.hasOwn(object, key) ? object[key] : undefined);

/** The tokens of a JSON pointer (RFC 6901); `null` if it is none, or too long. */
export function parsePointer(text) {
  if (text.length > POINTER_MAX || (text !== "" && !text.startsWith("/")) || /~(?![01])/.test(text)) return null;
  return text === "" ? [] : text.slice(1).split("/").map((token) => token.replaceAll("~1", "/").replaceAll("~0", "~"));
}

export function formatPointer(tokens) {
  return tokens.map((token) => `/${String(token).replaceAll("~", "~0").replaceAll("/", "~1")}`).join("");
}

/** The value that a pointer's tokens lead to; `undefined` if there is none. */
export function resolve(data, tokens) {
  let value = data;
  for (const token of tokens) {
    if (Array.isArray(value)) value = /^(0|[1-9]\d*)$/.test(token) ? value[token] : undefined;
    else if (isObject(value)) value = own(value, token);
    else return undefined;
  }
  return value;
}

/** The number that a scalar is, also as a text; else NaN. */
export function numberOf(value) {
  if (typeof value === "number") return value;
  return typeof value === "string" && value.length <= 40 && NUMBER.test(value) ? Number(value) : NaN;
}

const isNumeric = (value) => Number.isFinite(numberOf(value));

/** A scalar as the table shows it: numbers as a double has them, without an exponent where that fits; other values as short texts. */
export function scalarText(value) {
  if (value === undefined) return "";
  if (value !== null && typeof value === "object") return Array.isArray(value) ? `[${value.length}]` : "{…}";
  let text = typeof value === "string" ? value : JSON.stringify(value);
  if (typeof value === "number" && /e/.test(text)) {
    const expanded = Math.abs(value) < 1 ? value.toFixed(18).replace(/0+$/, "") : value.toFixed(0);
    if (Math.abs(value) >= 1e-12 && Math.abs(value) < 1e21) text = expanded;
  }
  return cut(text, TEXT_MAX);
}

/** Longest text, in characters, whose numbers are shown with the digits published; in a longer one, as a double has them. */
export const PUBLISHED_MAX = 16 << 10;
/** Doubles are exact up to this many digits. */
const DIGITS_MAX = 15;
/** Doubles that are spelled with more characters than this are looked up in the text in any case. */
const SHORT_MAX = 12;
const TEXTS_AND_NUMBERS = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d[\d.eE+-]*/g;

/** Whether a double would be shown with other digits than the number published. With an exponent it may have other zeros. */
function isRespelled(number) {
  const [digits] = number.split(/e/i);
  if (digits === number) return String(Number(number)) !== number;
  return digits.replace(/\D/g, "").length > DIGITS_MAX;
}

/** `data`, parsed from `text`, with texts of their digits in place of numbers that a double would show otherwise. */
export function withDigits(text, data) {
  if (text.length > PUBLISHED_MAX) return data;
  try {
    return JSON.parse(text.replace(TEXTS_AND_NUMBERS, (token) => (token[0] !== '"' && isRespelled(token) ? `"${token}"` : token)));
  } catch {
    return data;
  }
}

/** Whether `text` may spell a scalar parsed from it with other digits: a cheap test, since most do not. */
export function mayBeRespelled(text, value) {
  if (typeof value !== "number") return false;
  const spelled = String(value);
  if (spelled.length > SHORT_MAX || spelled.includes("e") || Object.is(value, -0)) return true;
  // A longer number that rounds to a short double goes on with zeros, or ends in nines just below it.
  return text.includes(Number.isInteger(value) ? `${spelled}.0` : `${spelled}0`) || text.includes("999");
}

/** Shortens a text, between two characters and not within one. */
function cut(text, max) {
  if (text.length <= max) return text;
  const end = /[\ud800-\udbff]/.test(text[max - 2]) ? max - 2 : max - 1;
  return `${text.slice(0, end)}…`;
}

/** Where a named value has its number: in itself, as the first of an array or of the first level, or under its own price. */
function leafOf(value, takesLast) {
  if (isNumeric(value)) return [];
  if (Array.isArray(value) && value.length > 0) {
    const at = takesLast ? value.length - 1 : 0;
    if (isNumeric(value[at])) return [at];
    if (takesLast) return null;
    const [level] = value;
    if (Array.isArray(level) && isNumeric(level[0])) return [0, 0];
    if (isObject(level)) return priceKeyOf(level, [0]);
    return null;
  }
  return isObject(value) ? priceKeyOf(value, []) : null;
}

function priceKeyOf(object, before) {
  const key = ["price", "px", "value", "p"].find((name) => isNumeric(own(object, name)));
  return key === undefined ? null : [...before, key];
}

/** The roles that the keys of an object have: `{role: tokens within it}`. */
function rolesOf(object) {
  const found = {};
  const ranks = {};
  const keys = Object.keys(object).slice(0, KEYS_MAX);
  for (const key of keys) {
    const entry = ROLE_OF.get(key.toLowerCase().replace(/[_\-. ]/g, ""));
    if (entry === undefined || ranks[entry.role] <= entry.rank) continue;
    const leaf = leafOf(object[key], entry.role === "volume" || entry.role === "open");
    if (leaf === null) continue;
    found[entry.role] = [key, ...leaf];
    ranks[entry.role] = entry.rank;
  }
  addShortRoles(object, found);
  return found;
}

/** Names of one letter, whose case counts: they mean something only beside each other. */
function addShortRoles(object, found) {
  const leaf = (key, takesLast = false) => {
    const value = own(object, key);
    const rest = value === undefined ? null : leafOf(value, takesLast);
    return rest === null ? null : [key, ...rest];
  };
  const take = (role, tokens) => {
    if (found[role] === undefined && tokens !== null) found[role] = tokens;
  };
  const [bid, ask, close, price] = [leaf("b"), leaf("a"), leaf("c"), leaf("p")];
  if (bid !== null && ask !== null) {
    take("bid", bid);
    take("ask", ask);
  }
  const isQuote = found.bid !== undefined && found.ask !== undefined;
  if (close !== null && (isQuote || leaf("o") !== null)) {
    take("last", close);
    // Kraken's `c` is [price, lot]; Binance has the lot in `Q`.
    take("size", Array.isArray(object.c) && isNumeric(object.c[1]) ? ["c", 1] : leaf("Q"));
    take("open", leaf("o", true));
  }
  take("last", price);
  if (price !== null) take("size", leaf("q"));
  if (found.last !== undefined || isQuote) take("volume", leaf("v", true));
  else take("last", leaf("v"));
}

/** Objects of a payload, breadth first, within the bounds: `{object, path}`. */
function objectsOf(data) {
  const found = [];
  const queue = [{ value: data, path: [] }];
  for (let at = 0; at < queue.length && at < NODES_MAX; at += 1) {
    const { value, path } = queue[at];
    if (isObject(value)) found.push({ object: value, path });
    if (path.length >= DEPTH_MAX) continue;
    const isRows = Array.isArray(value) && value.every(isObject);
    // Of rows the last is the newest.
    const keys = isRows ? [value.length - 1] : Object.keys(value ?? {}).slice(0, Array.isArray(value) ? ELEMENTS_MAX : KEYS_MAX);
    for (const key of keys) {
      if (value[key] !== null && typeof value[key] === "object") queue.push({ value: value[key], path: [...path, key] });
    }
  }
  return found;
}

/** The words that tell a payload's kind, from its outer objects and from a channel array. */
function wordsOf(data, objects) {
  const texts = Array.isArray(data) ? data.slice(0, KEYS_MAX) : [];
  for (const { object } of objects.slice(0, 8)) for (const key of KIND_KEYS) texts.push(own(object, key));
  return texts.filter((text) => typeof text === "string" && text.length <= POINTER_MAX);
}

const isLevel = (value) => value !== null && typeof value === "object";
const isLevels = (value) => Array.isArray(value) && value.length > 0 && value.every(isLevel);
const sideOf = (row) => own(row, "side") ?? own(row, "Side");
const firstOf = (row, keys) => row[keys.find((key) => own(row, key) !== undefined)];
const PRICES = ["price", "px", "price_level"];
const priceOf = (row) => firstOf(row, PRICES);
const sizeOf = (row) => firstOf(row, ["size", "qty", "new_quantity", "quantity", "amount"]);
const isOfTrade = (row) => Object.keys(row).some((name) => TRADES.test(name) || name === "tick_direction");
const isBookRow = (row) =>
  isObject(row) && typeof sideOf(row) === "string" && [priceOf(row), sizeOf(row), own(row, "id")].some(isNumeric);

/**
 * The book levels that a payload holds: `{levels: [{side, price, size, change}], isDelta, rows}`, where `rows` are those of an
 * `orderBookL2`, by path. `null` without any.
 */
function bookOf(data, objects, words) {
  if (words.some((word) => TRADES.test(word))) return null;
  const book = { levels: [], isDelta: false, rows: null };
  const add = (level, side, change) => {
    if (book.levels.length < LEVELS_MAX) book.levels.push(levelOf(level, side, change));
  };
  for (const { object, path } of objects) {
    if (Array.isArray(object.changes) && isLevels(object.changes)) {
      object.changes.forEach((level) => add(level));
      book.isDelta = true;
      return book;
    }
    const parts = ["delete", "update", "insert"].filter((name) => Array.isArray(own(object, name)));
    if (parts.length >= 2) {
      for (const name of parts) object[name].filter(isBookRow).forEach((row) => add(row, undefined, name));
      book.isDelta = true;
      return book;
    }
    for (const [key, side] of SIDES) if (isLevels(own(object, key))) object[key].forEach((level) => add(level, side));
    if (book.levels.length > 0) {
      // Binance's first and last update; Kraken's images are `as` and `bs`, its changes `a` and `b`.
      const isOfRange = "U" in object && "u" in object;
      const isOfChannel = Array.isArray(data) && words.some((word) => /^book/.test(word)) && ("a" in object || "b" in object);
      book.isDelta = isOfRange || isOfChannel;
      return book;
    }
    for (const key of ["data", "rows", "updates", "levels"]) {
      const rows = own(object, key);
      if (!isLevels(rows) || !rows.every(isBookRow) || isOfTrade(rows[0])) continue;
      rows.forEach((row) => add(row));
      book.rows = { rows, path: [...path, key] };
      return book;
    }
  }
  return null;
}

const SIDES = [["bids", "bid"], ["asks", "ask"], ["bs", "bid"], ["as", "ask"], ["b", "bid"], ["a", "ask"]];

function levelOf(level, side, change) {
  if (isObject(level)) {
    return { side: side ?? sideOf(level), price: priceOf(level) ?? own(level, "id"), size: sizeOf(level), change };
  }
  const hasSide = typeof level[0] === "string" && !isNumeric(level[0]);
  const [price, size] = hasSide ? level.slice(1) : level;
  return { side: hasSide ? level[0] : side, price, size, change };
}

function levelText({ side, price, size, change }) {
  const isGone = change === "delete" || numberOf(size) === 0;
  const what = isGone ? "gone" : size === undefined ? "" : scalarText(size);
  const parts = [scalarText(side).toLowerCase(), what, "@", scalarText(price)];
  return parts.filter((part) => part !== "").join(" ");
}

/** Kraken's channel arrays without names: `[id, rows, "trade", pair]` and `[id, [bid, ask, …], "spread", pair]`. */
function positionsOf(data) {
  if (!Array.isArray(data) || data.length < 3 || !Array.isArray(data[1])) return {};
  const channel = data.at(-2);
  const [, rows] = data;
  const last = rows.length - 1;
  if (channel === "spread" && isNumeric(rows[0])) return { bid: [1, 0], ask: [1, 1] };
  const isTrade = channel === "trade" && Array.isArray(rows[last]) && isNumeric(rows[last][0]);
  return isTrade ? { last: [1, last, 0], size: [1, last, 1] } : {};
}

/** The best rows of an `orderBookL2` image, by path. */
function bestOf({ rows, path }) {
  const best = {};
  rows.slice(0, LEVELS_MAX).forEach((row, at) => {
    const price = numberOf(priceOf(row));
    const isBid = /^(b|buy|bid)$/i.test(sideOf(row));
    const role = isBid ? "bid" : "ask";
    const before = best[role]?.price ?? (isBid ? -Infinity : Infinity);
    if (!Number.isFinite(price) || (isBid ? price <= before : price >= before)) return;
    const key = PRICES.find((name) => own(row, name) !== undefined);
    best[role] = { price, path: [...path, at, key] };
  });
  return Object.fromEntries(Object.entries(best).map(([role, { path }]) => [role, path]));
}

function isPatch(data) {
  const isOperation = (entry) => isObject(entry) && typeof entry.op === "string" && typeof entry.path === "string";
  return Array.isArray(data) && data.length > 0 && data.every(isOperation);
}

/** Whether the beginning of a JSON text has a word that tells a delta with some fields. Much cheaper than to parse it. */
export const mayBePartial = (text) => QUOTED_STRONG.test(text);

/** What a payload says that has no fields. */
export const NOTHING = { paths: {}, isDelta: false, isPartial: false, isPrice: false, summary: "" };

/**
 * What a parsed payload says: `paths` by role, as tokens; `isDelta`; `isPartial`, a delta that has some of the fields of what it
 * changes; `isPrice`, whether `last` is a price; and `summary`, one line for a payload without any of the fields, else empty.
 */
export function look(data) {
  if (data === null || typeof data !== "object") {
    const isNumber = typeof data === "number";
    return { ...NOTHING, paths: isNumber ? { last: [] } : {}, summary: isNumber ? "" : cut(String(data), SUMMARY_MAX) };
  }
  const objects = objectsOf(data);
  const words = wordsOf(data, objects);
  const book = bookOf(data, objects, words);
  const isDelta =
    isPatch(data) ||
    words.some((word) => STRONG_DELTA.test(word)) ||
    (book !== null && (book.isDelta || words.some((word) => WEAK_DELTA.test(word))));
  // The levels of a change are not the best of the book.
  const paths = isPatch(data) || (book !== null && isDelta) ? {} : book?.rows ? bestOf(book.rows) : guess(data, objects, isDelta);
  const { last } = paths;
  const isPrice = last !== undefined && last.length > 0 && !paths.isPlain && !NOT_PRICES.has(lastName(last));
  delete paths.isPlain;
  const hasAny = ROLES.some((role) => paths[role] !== undefined);
  const isPartial = isDelta && book === null && !isPatch(data);
  return { paths, isDelta, isPartial, isPrice, summary: hasAny ? "" : summaryOf(data, book, isDelta) };
}

const lastName = (tokens) => String(tokens.findLast((token) => typeof token === "string") ?? "").toLowerCase();

function guess(data, objects, isDelta) {
  let best = positionsOf(data);
  const score = (paths) => ROLES.filter((role) => paths[role] !== undefined).length;
  for (const { object, path } of objects) {
    const found = rolesOf(object);
    if (score(found) <= score(best)) continue;
    best = Object.fromEntries(Object.entries(found).map(([role, tokens]) => [role, [...path, ...tokens]]));
  }
  // A delta without any of the fields says nothing new of them.
  if (score(best) > 0 || isDelta) return best;
  for (const { object, path } of objects.slice(0, 8)) {
    const named = PLAIN.find((name) => isNumeric(own(object, name)));
    const isValue = (name) => typeof object[name] === "number" && !IDENTIFIES.test(name.toLowerCase());
    const key = named ?? Object.keys(object).slice(0, KEYS_MAX).find(isValue);
    if (key !== undefined) return { last: [...path, key], isPlain: true };
  }
  return {};
}

function summaryOf(data, book, isDelta) {
  if (book !== null && book.levels.length > 0) {
    const { length } = book.levels;
    const noun = isDelta ? "change" : "level";
    const shown = book.levels.slice(0, 4).map(levelText).join(", ");
    return cut(`${length} ${noun}${length === 1 ? "" : "s"}: ${shown}`, SUMMARY_MAX);
  }
  const text = shortJson(data);
  if (isDelta && isPatch(data)) return cut(`${data.length} change${data.length === 1 ? "" : "s"}: ${text}`, SUMMARY_MAX);
  return cut(Array.isArray(data) ? `array of ${data.length}: ${text}` : text, SUMMARY_MAX);
}

/** The beginning of a payload's JSON. Does not visit more of it than that takes. */
function shortJson(data) {
  let left = SUMMARY_MAX;
  const write = (value, depth) => {
    if (left <= 0 || depth > 8) return "…";
    if (value === null || typeof value !== "object") {
      const text = typeof value === "string" ? JSON.stringify(value.slice(0, SUMMARY_MAX)) : String(value);
      left -= text.length;
      return text;
    }
    const parts = [];
    for (const key of Object.keys(value).slice(0, KEYS_MAX)) {
      if (left <= 0) break;
      const name = Array.isArray(value) ? "" : `${JSON.stringify(key)}:`;
      left -= name.length + 1;
      parts.push(name + write(value[key], depth + 1));
    }
    return Array.isArray(value) ? `[${parts.join(", ")}]` : `{${parts.join(", ")}}`;
  };
  return write(data, 0);
}

/** Scalars of a payload with their pointers, at most `max`: `{fields: [{tokens, value}], hasMore}`. */
export function scalarsOf(data, max) {
  const fields = [];
  let hasMore = false;
  const visit = (value, tokens) => {
    if (fields.length >= max) {
      hasMore = true;
    } else if (value === null || typeof value !== "object") {
      fields.push({ tokens, value });
    } else if (tokens.length < 16) {
      for (const key of Object.keys(value)) {
        if (hasMore) break;
        visit(value[key], [...tokens, key]);
      }
    }
  };
  visit(data, []);
  return { fields, hasMore };
}
