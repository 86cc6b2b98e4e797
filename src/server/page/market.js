// market.js: what is known of each topic in the table: its newest tick, and every tick that did not come.

import { FLAG_JSON, FLAG_SNAPSHOT } from "./wire.js";

/** Topics that are listed; of more, only the number is told. */
export const ROWS_MAX = 10_000;
/** Payloads up to this are kept as they came, and read when somebody looks. */
const KEPT_BYTES_MAX = 4_096;
/** Fields that hold what a topic is about, the first that is there. */
const VALUE_FIELDS = ["price", "last", "last_price", "value", "mid", "px", "p", "v", "bpm", "rate", "n"];
const PRICE_FIELDS = new Set(["price", "last", "last_price", "mid", "px", "p"]);
const OPEN_FIELDS = ["open_24h", "open"];
const TEXT_MAX = 24;

const decoder = new TextDecoder();

/** A topic. `shown` and what follows from it is what `look` has read of the newest tick. */
class Row {
  /** The next sequence; 0: not known, whatever comes is no loss. */
  next = 0;
  sequence = 0;
  ticks = 0;
  conflated = 0;
  gaps = 0;
  rate = 0;
  /** The page was away, and has had no tick of it since. */
  away = false;
  /** The last tick was of a snapshot: what lies between it and the next is not missing. */
  loose = false;
  text = "–";
  value = NaN;
  change = NaN;
  changeText = "";
  changeTitle = "";
  unread = null;
  /** The newest tick has not been drawn. */
  dirty = true;
  /** Its place by name. */
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

  keep(frame) {
    const bytes = frame.bytes();
    const isJson = (frame.flags & FLAG_JSON) !== 0;
    if (bytes.length <= KEPT_BYTES_MAX) this.unread = { bytes: bytes.slice(), isJson };
    else this.#read(bytes, isJson);
  }

  /** Reads the newest payload, if that was not done. */
  look() {
    if (this.unread === null) return;
    const { bytes, isJson } = this.unread;
    this.unread = null;
    this.#read(bytes, isJson);
  }

  #read(bytes, isJson) {
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
      this.changeText = signed(this.change, `${Math.abs(this.change).toFixed(2)} %`);
      this.changeTitle = Number.isNaN(found.open) ? "since this page first saw it" : "since the opening, 24 hours ago";
    } else {
      this.change = Number.isNaN(before) ? 0 : found.value - before;
      this.changeText = signed(this.change, String(+Math.abs(this.change).toPrecision(6)));
      this.changeTitle = "since the value shown before";
    }
  }

  /** Published ticks a second, from the sequences: those that did not come count too. */
  measure(now) {
    if (this.#rateAt !== 0 && this.sequence >= this.#rateSequence) {
      const seconds = (now - this.#rateAt) / 1e3;
      const rate = (this.sequence - this.#rateSequence) / seconds;
      // Half of it is of the last two seconds.
      const share = 1 - 2 ** (-seconds / 2);
      const next = this.rate + share * (rate - this.rate);
      this.rate = next < 0.05 ? 0 : next;
    }
    this.#rateAt = now;
    this.#rateSequence = this.sequence;
  }

  /** What came in one piece is no rate. */
  measureAnew() {
    this.#rateAt = 0;
  }

  /** The sequences begin anew: another life of the server, or another subscription. */
  anew(isNewLife) {
    this.next = 0;
    this.loose = false;
    this.measureAnew();
    if (isNewLife) this.sequence = 0;
  }
}

function signed(change, text) {
  if (/^[0.]*( %)?$/.test(text)) return text;
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
  // A change of an order book: side, price, size.
  const level = Array.isArray(data.changes) ? data.changes.at(-1) : undefined;
  if (Array.isArray(level) && Number.isFinite(number(level[1]))) return found(level[1], NaN, true);
  const other = Object.entries(data).find(([, value]) => typeof value === "number");
  if (other !== undefined) return found(other[1], NaN, false);
  return { text: text.slice(0, TEXT_MAX), value: NaN, open: NaN, isPrice: false };
}

/** The rows, in the order they are listed in. */
export class Market {
  rows = new Map();
  /** Listed, sorted. */
  order = [];
  #unlisted = new Set();
  conflated = 0;
  gaps = 0;
  /** Ticks that did not come and were not announced: there should never be one. */
  unannounced = 0;
  /** Ticks that were missed while the page was away. */
  missed = 0;
  #sort = { key: "name", down: false };
  #stale = false;
  #hasNewcomers = false;

  /** Topics beyond ROWS_MAX. */
  get unlisted() {
    return this.#unlisted.size;
  }

  /** The row of a topic; `null` when there are too many. */
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
    this.#stale = this.#hasNewcomers = true;
    return row;
  }

  tick(row, frame) {
    const { sequence } = frame;
    const isSnapshot = (frame.flags & FLAG_SNAPSHOT) !== 0;
    if (row.next !== 0 && sequence > row.next) this.#jump(row, sequence - row.next, isSnapshot);
    row.loose = isSnapshot;
    // A snapshot is of before: what comes after it may have been missed too.
    if (!isSnapshot) row.away = false;
    // The newest of each key come in any order.
    if (sequence < row.next && isSnapshot) return;
    row.next = sequence + 1;
    row.sequence = sequence;
    row.ticks += 1;
    row.dirty = true;
    row.keep(frame);
  }

  /** So many ticks did not come, and nothing was said of them. */
  #jump(row, ticks, isSnapshot) {
    if (row.away) {
      row.conflated += ticks;
      this.conflated += ticks;
      this.missed += ticks;
    } else if (!isSnapshot && !row.loose) {
      this.unannounced += ticks;
    }
  }

  /** Ticks `[from, to)` do not come. */
  skip(row, isGap, from, to) {
    if (row.next !== 0 && from > row.next) this.#jump(row, from - row.next, false);
    row.loose = false;
    // What was lost before this page's first tick is no loss of its.
    const isBefore = isGap && row.next === 0;
    const ticks = isBefore ? 0 : row.next > from ? Math.max(0, to - row.next) : to - from;
    row.next = Math.max(row.next, to);
    row.dirty = true;
    if (isGap) {
      row.gaps += ticks;
      this.gaps += ticks;
    } else {
      row.conflated += ticks;
      this.conflated += ticks;
    }
    if (row.away) {
      row.away = false;
      this.missed += ticks;
    }
  }

  /** Nothing comes for a while. */
  leave() {
    this.missed = 0;
    for (const row of this.rows.values()) {
      row.rate = 0;
      row.dirty = true;
    }
  }

  /** Comes back, to a server that counts on or to one that counts from the start. */
  return(isNewLife) {
    this.#unlisted.clear();
    for (const row of this.rows.values()) {
      row.away = !isNewLife && row.sequence > 0;
      row.anew(isNewLife);
      if (row.away) row.next = row.sequence + 1;
    }
  }

  clear() {
    this.rows.clear();
    this.order = [];
    this.#unlisted.clear();
    this.#stale = true;
  }

  /** Rows of no such topic go: a server that was started anew does not have it. */
  keep(names) {
    for (const name of this.rows.keys()) names.has(name) || this.rows.delete(name);
    this.order = this.order.filter((row) => names.has(row.name));
    this.#stale = true;
  }

  /** Once a second: rates, and the order that follows from what changes. */
  second(now) {
    for (const row of this.rows.values()) {
      const before = row.rate;
      row.measure(now);
      row.dirty ||= row.rate !== before;
    }
    if (this.#sort.key !== "name") this.#stale = true;
  }

  /** After what came in one piece. */
  measureAnew() {
    for (const row of this.rows.values()) row.measureAnew();
  }

  sortBy(key) {
    const down = this.#sort.key === key ? !this.#sort.down : key !== "name";
    this.#sort = { key, down };
    this.#stale = true;
    return this.#sort;
  }

  /** Sorts, if that is due; returns whether rows may have moved. */
  settle() {
    if (!this.#stale) return false;
    this.#stale = false;
    if (this.#hasNewcomers) {
      // Names are compared once for each newcomer, not whenever rates change.
      this.#hasNewcomers = false;
      this.order.sort((a, b) => collator.compare(a.name, b.name));
      this.order.forEach((row, rank) => (row.rank = rank));
    }
    const { key, down } = this.#sort;
    const sign = down ? -1 : 1;
    if (key === "value" || key === "change") this.order.forEach((row) => row.look());
    const byNumber = (a, b) => {
      // What has no number comes last either way.
      const [x, y] = [a[key], b[key]];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a.rank - b.rank;
      return sign * (x - y) || a.rank - b.rank;
    };
    this.order.sort(key === "name" ? (a, b) => sign * (a.rank - b.rank) : byNumber);
    return true;
  }
}

const collator = new Intl.Collator("en", { numeric: true });
