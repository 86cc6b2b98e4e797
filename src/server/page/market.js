// market.js: the state of each topic in the table: its last tick and the counts of ticks that did not arrive.

import { FLAG_JSON, FLAG_SNAPSHOT } from "./wire.js";

/** Topics listed; any more are only counted. */
export const ROWS_MAX = 10_000;
/** Payloads up to this size are parsed lazily, when their row is drawn or sorted. Larger ones are parsed on arrival. */
const LAZY_BYTES_MAX = 4_096;
/** JSON fields to show as the value, in order of preference. */
const VALUE_FIELDS = ["price", "last", "last_price", "value", "mid", "px", "p", "v", "bpm", "rate", "n"];
const PRICE_FIELDS = new Set(["price", "last", "last_price", "mid", "px", "p"]);
const OPEN_FIELDS = ["open_24h", "open"];
const TEXT_MAX = 24;

const decoder = new TextDecoder();

/** A topic. `text`, `value` and the change describe the last payload that `parse` has read. */
class Row {
  /** The next sequence expected; 0 if unknown, so that no gap is inferred from the next tick. */
  next = 0;
  sequence = 0;
  ticks = 0;
  conflated = 0;
  gaps = 0;
  rate = 0;
  /** No live tick has arrived since the end of an absence, so a gap is due to the absence. */
  isCatchingUp = false;
  /** The last tick was a snapshot: the sequences between it and the next tick are not missing. */
  isAfterSnapshot = false;
  text = "–";
  value = NaN;
  change = NaN;
  changeText = "";
  changeTitle = "";
  unparsed = null;
  /** The row has changes that are not drawn yet. */
  dirty = true;
  /** Position in the order by name. */
  rank = 0;
  #first = NaN;
  #rateSequence = 0;
  #rateAt = 0;

  constructor(name) {
    this.name = name;
    const dot = name.lastIndexOf(".");
    this.prefix = name.slice(0, dot + 1);
    this.symbol = name.slice(dot + 1);
  }

  store(frame) {
    const bytes = frame.bytes();
    const isJson = (frame.flags & FLAG_JSON) !== 0;
    if (bytes.length <= LAZY_BYTES_MAX) this.unparsed = { bytes: bytes.slice(), isJson };
    else this.#parse(bytes, isJson);
  }

  /** Parses the last payload, unless it is parsed already. */
  parse() {
    if (this.unparsed === null) return;
    const { bytes, isJson } = this.unparsed;
    this.unparsed = null;
    this.#parse(bytes, isJson);
  }

  #parse(bytes, isJson) {
    const found = isJson ? valueOf(bytes) : { text: `${bytes.length} bytes`, value: NaN, open: NaN, isPrice: false };
    const before = this.value;
    this.text = found.text;
    this.value = found.value;
    if (Number.isNaN(this.#first)) this.#first = found.value;
    const open = Number.isNaN(found.open) ? this.#first : found.open;
    if (Number.isNaN(found.value)) {
      this.change = NaN;
      this.changeText = "";
    } else if (found.isPrice && open !== 0) {
      this.change = ((found.value - open) / open) * 100;
      this.changeText = signed(this.change, `${Math.abs(this.change).toFixed(2)}%`);
      this.changeTitle = Number.isNaN(found.open) ? "since the first value seen" : "since the opening price";
    } else {
      this.change = Number.isNaN(before) ? 0 : found.value - before;
      this.changeText = signed(this.change, String(+Math.abs(this.change).toPrecision(6)));
      this.changeTitle = "since the previous value";
    }
  }

  /** Updates the publish rate from the sequences, so that ticks that did not arrive count too. */
  updateRate(now) {
    if (this.#rateAt !== 0 && this.sequence >= this.#rateSequence) {
      const seconds = (now - this.#rateAt) / 1e3;
      const rate = (this.sequence - this.#rateSequence) / seconds;
      // Exponential moving average with a half-life of 2 s.
      const weight = 1 - 2 ** (-seconds / 2);
      const next = this.rate + weight * (rate - this.rate);
      this.rate = next < 0.05 ? 0 : next;
    }
    this.#rateAt = now;
    this.#rateSequence = this.sequence;
  }

  /** Excludes the ticks so far from the rate, because they arrived in one burst. */
  restartRate() {
    this.#rateAt = 0;
  }

  /** Forgets the expected sequence after a reconnect; with a new epoch, the last one too. */
  reset(isNewEpoch) {
    this.next = 0;
    this.isAfterSnapshot = false;
    this.restartRate();
    if (isNewEpoch) this.sequence = 0;
  }
}

function signed(change, text) {
  if (/^[0.]*%?$/.test(text)) return text;
  return change > 0 ? `+${text}` : `−${text}`;
}

function number(value) {
  if (typeof value === "number") return value;
  return typeof value === "string" && value.trim() !== "" ? Number(value) : NaN;
}

function valueOf(bytes) {
  const text = decoder.decode(bytes);
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    return { text: text.slice(0, TEXT_MAX), value: NaN, open: NaN, isPrice: false };
  }
  const found = (raw, open, isPrice) => ({ text: String(raw).slice(0, TEXT_MAX), value: number(raw), open, isPrice });
  if (data === null || typeof data !== "object") {
    const raw = data === null ? "null" : data;
    return { ...found(raw, NaN, false), value: typeof data === "number" ? data : NaN };
  }
  for (const field of VALUE_FIELDS) {
    if (Number.isFinite(number(data[field]))) {
      const opened = OPEN_FIELDS.find((name) => Number.isFinite(number(data[name])));
      return found(data[field], opened === undefined ? NaN : number(data[opened]), PRICE_FIELDS.has(field));
    }
  }
  // An order book update: `[side, price, size]`.
  const level = Array.isArray(data.changes) ? data.changes.at(-1) : undefined;
  if (Array.isArray(level) && Number.isFinite(number(level[1]))) return found(level[1], NaN, true);
  const other = Object.entries(data).find(([, value]) => typeof value === "number");
  if (other !== undefined) return found(other[1], NaN, false);
  return { text: text.slice(0, TEXT_MAX), value: NaN, open: NaN, isPrice: false };
}

/** All rows, and the order in which the table lists them. */
export class Market {
  /** Rows by topic. */
  rows = new Map();
  /** The rows, sorted. */
  order = [];
  #unlisted = new Set();
  conflated = 0;
  gaps = 0;
  /** Ticks missing without an announcement: anything but 0 is a bug. */
  unannounced = 0;
  /** Ticks missed during the last absence. */
  missed = 0;
  #sort = { key: "name", down: false };
  #stale = false;
  #hasNewRows = false;

  /** Number of topics beyond ROWS_MAX. */
  get unlisted() {
    return this.#unlisted.size;
  }

  /** The row of a topic, created if necessary; `null` beyond ROWS_MAX. */
  row(name) {
    const known = this.rows.get(name);
    if (known !== undefined) return known;
    if (this.rows.size >= ROWS_MAX) {
      this.#unlisted.add(name);
      return null;
    }
    const row = new Row(name);
    this.rows.set(name, row);
    this.order.push(row);
    this.#stale = this.#hasNewRows = true;
    return row;
  }

  tick(row, frame) {
    const { sequence } = frame;
    const isSnapshot = (frame.flags & FLAG_SNAPSHOT) !== 0;
    if (row.next !== 0 && sequence > row.next) this.#countGap(row, sequence - row.next, isSnapshot);
    row.isAfterSnapshot = isSnapshot;
    // A snapshot may predate the end of the absence, so the gap after it belongs to the absence too.
    if (!isSnapshot) row.isCatchingUp = false;
    // A snapshot sends the last value of each key, in any order of sequences.
    if (sequence < row.next && isSnapshot) return;
    row.next = sequence + 1;
    row.sequence = sequence;
    row.ticks += 1;
    row.dirty = true;
    row.store(frame);
  }

  /** Counts ticks that are missing without an announcement. */
  #countGap(row, ticks, isSnapshot) {
    if (row.isCatchingUp) {
      row.conflated += ticks;
      this.conflated += ticks;
      this.missed += ticks;
    } else if (!isSnapshot && !row.isAfterSnapshot) {
      this.unannounced += ticks;
    }
  }

  /** Handles the announcement that ticks `[from, to)` were conflated, or lost if `isGap`. */
  skip(row, isGap, from, to) {
    if (row.next !== 0 && from > row.next) this.#countGap(row, from - row.next, false);
    row.isAfterSnapshot = false;
    // A gap before the first tick that this page received is not its loss.
    const isBeforeFirst = isGap && row.next === 0;
    const ticks = isBeforeFirst ? 0 : row.next > from ? Math.max(0, to - row.next) : to - from;
    row.next = Math.max(row.next, to);
    row.dirty = true;
    if (isGap) {
      row.gaps += ticks;
      this.gaps += ticks;
    } else {
      row.conflated += ticks;
      this.conflated += ticks;
    }
    if (row.isCatchingUp) {
      row.isCatchingUp = false;
      this.missed += ticks;
    }
  }

  /** An absence begins: no ticks until `resume`. */
  pause() {
    this.missed = 0;
    for (const row of this.rows.values()) {
      row.rate = 0;
      row.dirty = true;
    }
  }

  /** An absence ends. With a new epoch, sequences start again. */
  resume(isNewEpoch) {
    this.#unlisted.clear();
    for (const row of this.rows.values()) {
      row.isCatchingUp = !isNewEpoch && row.sequence > 0;
      row.reset(isNewEpoch);
      if (row.isCatchingUp) row.next = row.sequence + 1;
    }
  }

  clear() {
    this.rows.clear();
    this.order = [];
    this.#unlisted.clear();
    this.#stale = true;
  }

  /** Removes the rows of all other topics: a restarted server may not have them any more. */
  retain(names) {
    for (const name of this.rows.keys()) names.has(name) || this.rows.delete(name);
    this.order = this.order.filter((row) => names.has(row.name));
    this.#stale = true;
  }

  /** Updates the rates, once a second, and marks the order as stale if it depends on values that change. */
  second(now) {
    for (const row of this.rows.values()) {
      const before = row.rate;
      row.updateRate(now);
      row.dirty ||= row.rate !== before;
    }
    if (this.#sort.key !== "name") this.#stale = true;
  }

  /** Excludes a burst that follows an absence from the rates. */
  restartRates() {
    for (const row of this.rows.values()) row.restartRate();
  }

  sortBy(key) {
    const down = this.#sort.key === key ? !this.#sort.down : key !== "name";
    this.#sort = { key, down };
    this.#stale = true;
    return this.#sort;
  }

  /** Sorts the rows if their order is stale. Returns whether rows may have moved. */
  sort() {
    if (!this.#stale) return false;
    this.#stale = false;
    if (this.#hasNewRows) {
      // Compare names only when rows are new. Every other sort uses the rank.
      this.#hasNewRows = false;
      this.order.sort((a, b) => collator.compare(a.name, b.name));
      this.order.forEach((row, rank) => (row.rank = rank));
    }
    const { key, down } = this.#sort;
    const sign = down ? -1 : 1;
    if (key === "value" || key === "change") this.order.forEach((row) => row.parse());
    const byNumber = (a, b) => {
      // Rows without a number come last in both directions.
      const [x, y] = [a[key], b[key]];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a.rank - b.rank;
      return sign * (x - y) || a.rank - b.rank;
    };
    this.order.sort(key === "name" ? (a, b) => sign * (a.rank - b.rank) : byNumber);
    return true;
  }
}

const collator = new Intl.Collator("en", { numeric: true });
