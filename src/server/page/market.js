// market.js: the state of each topic in the table: its last tick and the counts of ticks that did not arrive.

import { ROLE_COLUMNS, columnsOfRoles, primaryOf, roundedFor } from "./columns.js";
import { NOTHING, look, mayBePartial, mayBeRespelled, numberOf, resolve, scalarText, withDigits } from "./fields.js";
import { History } from "./history.js";
import { FLAG_JSON, FLAG_SNAPSHOT } from "./wire.js";

/** Topics listed; any more are only counted. */
export const ROWS_MAX = 10_000;
/** Payloads kept, so that they are parsed only when their row is drawn, sorted or opened; beyond this, on arrival. */
const KEPT_BYTES_MAX = 32 << 20;
/** With more topics than this, only those that have been drawn have a history. */
const SAMPLED_MAX = 500;
/** The first payloads of a topic are read on arrival: they tell whether all have to be. */
const FIRST_TICKS = 4;
/** Of later payloads this beginning is searched for the words of a delta, in vain at most so often for a topic. */
const SEARCHED_BYTES_MAX = 4 << 10;
const VAIN_MAX = 16;
/** What rows can be sorted by besides a column of fields. */
const SORTED_BY = new Set(["name", "change", "rate", "sequence", "conflated", "gaps"]);

const decoder = new TextDecoder();

/** A topic. `fields`, `value`, `summary` and the change describe the last payload that `parse` has read. */
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
  isDrawn = false;
  /** Text and value of the primary column as last drawn. */
  shownText = undefined;
  shownValue = NaN;
  /** Values by column key: `{text, title, value, isOld}`; `isOld` if the last payload, a delta, does not have it. */
  fields = new Map();
  /** One line about a payload without any of the columns; else empty. */
  summary = "";
  /** Where the guessed fields are, by role. */
  paths = {};
  isDelta = false;
  /** One of its payloads was a delta. */
  hasDeltas = false;
  /** One of its payloads was a delta with some fields of the whole: each payload is read. */
  hasPartials = false;
  /** Payloads that had the words of a delta with some fields, and were none. */
  vain = 0;
  /** Value of the primary column. */
  value = NaN;
  change = NaN;
  changeText = "";
  changeTitle = "";
  history = new History();
  /** The column that the history is of; `null` before its first number. */
  charted = null;
  /** The last payload, if it is kept: `{bytes, isJson, sequence, producerMs}`. */
  payload = null;
  isParsed = true;
  /** The row has changes that are not drawn yet. */
  dirty = true;
  /** Position in the order by name. */
  rank = 0;
  #first = NaN;
  #opening = NaN;
  /** Sequence of the payload that the change describes; 0 if none: a payload read anew for other columns is not a change. */
  #compared = 0;
  #rateSequence = 0;
  #rateAt = 0;

  constructor(name) {
    this.name = name;
    const dot = name.lastIndexOf(".");
    this.prefix = name.slice(0, dot + 1);
    this.symbol = name.slice(dot + 1);
  }

  /** Parses the last payload, unless it is parsed already. */
  parse(market) {
    if (this.isParsed) return;
    this.isParsed = true;
    if (this.payload !== null) this.read(market, this.payload);
  }

  read(market, { bytes, isJson, sequence }) {
    const { columns } = market;
    const primary = primaryOf(columns);
    const text = isJson ? decoder.decode(bytes) : "";
    const data = isJson ? parseJson(text) : undefined;
    let published = null;
    const isReadable = data !== undefined;
    const unreadable = isJson ? "invalid JSON" : `binary, ${bytes.length} bytes`;
    const found = isReadable ? look(data) : { ...NOTHING, summary: unreadable };
    this.isDelta = found.isDelta;
    this.hasDeltas ||= found.isDelta;
    this.paths = found.paths;
    market.found(found.paths);
    // All guessed fields are kept: a delta may lack those whose columns appear later.
    for (const column of market.readColumns) {
      const path = column.tokens ?? found.paths[column.role];
      const raw = path === undefined || !isReadable ? undefined : resolve(data, path);
      if (raw !== undefined) {
        if (published === null && mayBeRespelled(text, raw)) published = withDigits(text, data);
        this.fields.set(column.key, fieldOf(column, raw, published === null ? raw : resolve(published, path)));
      } else if (found.isPartial && this.fields.has(column.key)) {
        this.fields.get(column.key).isOld = true;
      } else {
        this.fields.delete(column.key);
      }
    }
    this.hasPartials ||= found.isPartial;
    const hasAny = columns.some(({ key }) => this.fields.has(key));
    this.summary = hasAny ? "" : found.summary || "has none of these fields";
    const isPrice = primary.role === "last" && found.isPrice;
    if (found.paths.open !== undefined) this.#opening = numberOf(resolve(data, found.paths.open));
    else if (!found.isDelta) this.#opening = NaN;
    const field = this.fields.get(primary.key);
    // A delta without the value leaves it and its change as they are.
    const isCompared = sequence === this.#compared;
    this.#compared = sequence;
    if (!isCompared && !field?.isOld) this.#compare(field?.value ?? NaN, isPrice);
  }

  /** Sets the value, and the change since the opening price or the value before. */
  #compare(value, isPrice) {
    const opening = this.#opening;
    const before = this.value;
    this.value = value;
    if (Number.isNaN(this.#first)) this.#first = value;
    const open = Number.isNaN(opening) ? this.#first : opening;
    if (Number.isNaN(value)) {
      this.change = NaN;
      this.changeText = "";
    } else if (isPrice && open !== 0) {
      this.change = ((value - open) / open) * 100;
      this.changeText = signed(this.change, `${Math.abs(this.change).toFixed(2)}%`);
      this.changeTitle = Number.isNaN(opening) ? "since the first value seen" : "since the opening price";
    } else {
      this.change = Number.isNaN(before) ? 0 : value - before;
      this.changeText = signed(this.change, String(+Math.abs(this.change).toPrecision(6)));
      this.changeTitle = "since the previous value";
    }
  }

  /** Adds the value of the primary column to the history, or of the first that has had a number. */
  sample(columns, isPaused) {
    const numberIn = (column) => this.fields.get(column?.key)?.value ?? NaN;
    const primary = primaryOf(columns);
    const isNumber = (column) => !Number.isNaN(numberIn(column));
    const next = isNumber(primary) ? primary : (this.charted ?? columns.find(isNumber) ?? null);
    if (next?.key !== this.charted?.key) this.history.clear();
    this.charted = next;
    this.history.push(isPaused ? NaN : numberIn(next));
  }

  /** The primary column is another: the change and the history are of that one now. */
  restart() {
    this.history.clear();
    this.charted = null;
    this.value = this.change = this.#first = this.#opening = NaN;
    this.changeText = "";
    this.#compared = 0;
    this.isParsed = this.payload === null;
    this.dirty = true;
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
    if (isNewEpoch) this.sequence = this.#compared = 0;
  }
}

function signed(change, text) {
  if (/^[0.]*%?$/.test(text)) return text;
  return change > 0 ? `+${text}` : `−${text}`;
}

const beginningOf = (bytes) => decoder.decode(bytes.subarray(0, SEARCHED_BYTES_MAX));

/** The value of a JSON text; `undefined` if it is none. */
export function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** The field of a column: `raw` as parsed, and `published` with its digits. */
function fieldOf(column, raw, published) {
  const whole = scalarText(published);
  const text = roundedFor(column, whole);
  return { text, title: text === whole ? "" : whole, value: numberOf(raw), isOld: false };
}

/** Whether a topic has all words of a filter in lower case, in any order. */
function hasWords(name, words) {
  const lower = name.toLowerCase();
  return words.every((word) => lower.includes(word));
}

/** All rows, and the order in which the table lists them. */
export class Market {
  /** Rows by topic. */
  rows = new Map();
  /** The rows that the filter lets through, sorted. */
  order = [];
  #unlisted = new Set();
  conflated = 0;
  gaps = 0;
  /** Ticks missing without an announcement: anything but 0 is a bug. */
  unannounced = 0;
  /** Ticks missed during the last absence. */
  missed = 0;
  isPaused = false;
  /** Columns of fields, and whether the user chose them; else they grow with the fields that are found. */
  columns = columnsOfRoles(new Set());
  /** Columns whose fields are read: those of all roles, shown or not, and the chosen ones. */
  readColumns = ROLE_COLUMNS;
  areColumnsChosen = false;
  /** Counts the changes of `columns`. */
  columnsVersion = 0;
  #roles = new Set();
  #keptBytes = 0;
  #words = [];
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
    this.#keep(row, frame);
  }

  /** Keeps the payload of a tick, or reads it at once if there is no room. A delta may lack what the next has: each is read. */
  #keep(row, frame) {
    const bytes = frame.bytes();
    const isJson = (frame.flags & FLAG_JSON) !== 0;
    const isSuspect = isJson && !row.hasPartials && row.vain < VAIN_MAX && mayBePartial(beginningOf(bytes));
    // What the first delta does not have is in the payload before it, which may not have been drawn.
    if (isSuspect) row.parse(this);
    this.#drop(row);
    if (this.#keptBytes + bytes.length <= KEPT_BYTES_MAX) {
      this.#keptBytes += bytes.length;
      row.payload = { bytes: bytes.slice(), isJson, sequence: frame.sequence, producerMs: frame.u64(0) / 1e6 };
      row.isParsed = false;
      if (isSuspect || row.hasPartials || row.ticks <= FIRST_TICKS) row.parse(this);
    } else {
      row.isParsed = true;
      row.read(this, { bytes, isJson, sequence: frame.sequence });
    }
    if (isSuspect && !row.hasPartials) row.vain += 1;
  }

  #drop(row) {
    this.#keptBytes -= row.payload?.bytes.length ?? 0;
    row.payload = null;
  }

  /** Shows these columns; `null`: guessed ones. */
  chooseColumns(columns) {
    this.areColumnsChosen = columns !== null;
    this.#setColumns(columns ?? columnsOfRoles(this.#roles));
  }

  /** A payload has these fields. Their columns appear with the next frame, and stay. */
  found(paths) {
    for (const role in paths) if (role !== "open") this.#roles.add(role);
  }

  /** Adds columns of fields found since the last call. */
  growColumns() {
    if (this.areColumnsChosen || this.#roles.size === 0) return;
    const columns = columnsOfRoles(this.#roles);
    if (columns.length !== this.columns.length || columns[0].key !== this.columns[0].key) this.#setColumns(columns);
  }

  #setColumns(columns) {
    const isPrimarySame = primaryOf(columns).key === primaryOf(this.columns).key;
    this.columns = columns;
    this.readColumns = [...ROLE_COLUMNS, ...columns.filter(({ role }) => role === null)];
    this.columnsVersion += 1;
    const kept = new Set(this.readColumns.map(({ key }) => key));
    for (const row of this.rows.values()) {
      for (const key of row.fields.keys()) kept.has(key) || row.fields.delete(key);
      if (isPrimarySame && (row.charted === null || columns.some(({ key }) => key === row.charted.key))) {
        row.isParsed = row.payload === null;
        row.dirty = true;
      } else {
        row.restart();
      }
    }
    const isSortedByMissing = !SORTED_BY.has(this.#sort.key) && !columns.some(({ key }) => key === this.#sort.key);
    if (isSortedByMissing) this.sortBy("name");
    this.#stale = true;
  }

  /** Lists only topics that hold all words of a text. */
  filter(text) {
    this.#words = text.toLowerCase().split(/\s+/).filter((word) => word !== "");
    this.#stale = true;
  }

  get isFiltered() {
    return this.#words.length > 0;
  }

  /** Adds a point to the history of each topic that was drawn, or of all if they are few. */
  sample() {
    const areFew = this.rows.size <= SAMPLED_MAX;
    for (const row of this.rows.values()) {
      if (!areFew && !row.isDrawn) continue;
      row.parse(this);
      row.sample(this.columns, this.isPaused);
    }
  }

  /** Topics that publish deltas, perhaps with images in between, and the ticks of theirs that were conflated. */
  deltas() {
    const rows = [...this.rows.values()].filter(({ hasDeltas }) => hasDeltas);
    return { names: rows.map(({ name }) => name), conflated: rows.reduce((sum, row) => sum + row.conflated, 0) };
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
    this.isPaused = true;
    for (const row of this.rows.values()) {
      row.rate = 0;
      row.dirty = true;
    }
  }

  /** An absence ends. With a new epoch, sequences start again. */
  resume(isNewEpoch) {
    this.isPaused = false;
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
    this.#keptBytes = 0;
    this.#unlisted.clear();
    this.#roles.clear();
    if (!this.areColumnsChosen) this.#setColumns(columnsOfRoles(this.#roles));
    this.#stale = true;
  }

  /** Removes the rows of all other topics: a restarted server may not have them any more. */
  retain(names) {
    for (const [name, row] of this.rows) {
      if (names.has(name)) continue;
      this.#drop(row);
      this.rows.delete(name);
    }
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
      const byName = [...this.rows.values()].sort((a, b) => collator.compare(a.name, b.name));
      byName.forEach((row, rank) => (row.rank = rank));
    }
    const rows = [...this.rows.values()];
    this.order = this.isFiltered ? rows.filter(({ name }) => hasWords(name, this.#words)) : rows;
    const { key, down } = this.#sort;
    const sign = down ? -1 : 1;
    const isField = this.columns.some((column) => column.key === key);
    if (isField || key === "change") this.order.forEach((row) => row.parse(this));
    const valueOf = isField ? (row) => row.fields.get(key)?.value ?? NaN : (row) => row[key];
    const byNumber = (a, b) => {
      // Rows without a number come last in both directions.
      const [x, y] = [valueOf(a), valueOf(b)];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a.rank - b.rank;
      return sign * (x - y) || a.rank - b.rank;
    };
    this.order.sort(key === "name" ? (a, b) => sign * (a.rank - b.rank) : byNumber);
    return true;
  }

  get sorting() {
    return this.#sort;
  }
}

const collator = new Intl.Collator("en", { numeric: true });
