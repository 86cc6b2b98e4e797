// Views: state that a subscription's events build up.

import type { SubscriptionEvent } from "./core/events.js";
import type { Key } from "./core/protocol.js";

/** Entries of a keyed view if its options do not say. */
export const KEYED_ENTRIES_MAX = 65_536;
/** Books of one view. */
export const BOOKS_MAX = 65_536;
/** Levels of one side of a book. A book with more is not live. */
export const BOOK_LEVELS_MAX = 65_536;

/** Takes a subscription's events before its listeners do. */
export interface View {
  close: () => void;
  handle(event: SubscriptionEvent): void;
}

interface Entry {
  topic: string;
  key: Key;
  data: unknown;
}

/**
 * The last payload of each topic and key. A JSON `null`, an empty payload, or one that does not parse, removes its key. A topic that starts a
 * new life, or whose position was not recovered, is cleared: all that there is follows.
 */
export class KeyedView {
  readonly #entriesMax: number;
  readonly #topics = new Map<string, { epoch: number; byKey: Map<Key, Entry> }>();
  /** All entries, the one set least recently first. */
  readonly #entries = new Set<Entry>();
  /** Epochs of the topics that are complete. */
  readonly #complete = new Map<string, number>();
  /** Detaches it from its subscription: it keeps what it has, and no longer changes. */
  close: () => void = () => {};

  constructor(options: { entriesMax?: number } = {}) {
    this.#entriesMax = options.entriesMax ?? KEYED_ENTRIES_MAX;
  }

  get size(): number {
    return this.#entries.size;
  }

  /** The last payload; undefined: none. */
  get(topic: string, key: Key = 0): unknown {
    return this.#topics.get(topic)?.byKey.get(key)?.data;
  }

  topics(): string[] {
    return [...this.#topics.keys()];
  }

  /**
   * Whether it has the last payload of every key of a topic: from a tick of a snapshot, or the topic's first tick, until a gap, a new life, or a
   * key that went beyond `entriesMax`. While it is not, other keys may have payloads, and keys here later ones. At most `entriesMax` topics are complete.
   */
  complete(topic: string): boolean {
    return this.#complete.has(topic);
  }

  /** Keys and payloads of a topic. */
  *entries(topic: string): IterableIterator<[Key, unknown]> {
    for (const { key, data } of this.#topics.get(topic)?.byKey.values() ?? []) yield [key, data];
  }

  /** @internal */
  handle(event: SubscriptionEvent): void {
    if (event.type === "recovered" && !event.recovered) this.#clear(event.topic);
    if (event.type === "gap") this.#complete.delete(event.topic);
    if (event.type !== "tick") return;
    const { topic, epoch, key } = event;
    if (this.#topics.get(topic)?.epoch !== epoch) this.#clear(topic, epoch);
    if ((event.snapshot || event.sequence === 1) && this.#complete.size < this.#entriesMax) this.#complete.set(topic, epoch);
    let data: unknown = null;
    try {
      data = event.data;
    } catch {
      // Whatever the value is now, it is not the one before.
    }
    // A view into a message would keep all of it.
    if (data instanceof Uint8Array) data = data.length === 0 ? null : data.slice();
    const known = this.#topics.get(topic)?.byKey.get(key);
    if (known !== undefined) this.#remove(known);
    if (data === null) return;
    if (this.#entries.size >= this.#entriesMax) {
      const oldest = this.#entries.values().next().value!;
      this.#complete.delete(oldest.topic);
      this.#remove(oldest);
    }
    const entry: Entry = { topic, key, data };
    const entries = this.#topics.get(topic) ?? { epoch, byKey: new Map<Key, Entry>() };
    this.#topics.set(topic, entries);
    entries.byKey.set(key, entry);
    this.#entries.add(entry);
  }

  #remove(entry: Entry): void {
    this.#entries.delete(entry);
    const byKey = this.#topics.get(entry.topic)?.byKey;
    byKey?.delete(entry.key);
    if (byKey?.size === 0) this.#topics.delete(entry.topic);
  }

  /** Removes a topic's entries. It stays complete in a life that goes on. */
  #clear(topic: string, epoch?: number): void {
    for (const entry of this.#topics.get(topic)?.byKey.values() ?? []) this.#remove(entry);
    if (this.#complete.get(topic) !== epoch) this.#complete.delete(topic);
  }
}

/** Price and size. */
export type Level = [price: number, size: number];

/** A payload of a book: a snapshot, or changed levels. Size 0 removes a level. */
export interface BookUpdate {
  snapshot: boolean;
  bids: Level[];
  asks: Level[];
}

/** Reads a payload; throws if it is no update of a book. */
export type BookParser = (data: unknown) => BookUpdate;

/** One order book. */
export interface Book {
  /** Whether the levels are right: a snapshot has arrived, and every delta since. */
  readonly live: boolean;
  /** Best first. */
  readonly bids: readonly Level[];
  readonly asks: readonly Level[];
}

/** A finite number, or one in a string: `Number` alone reads an empty string, null and booleans as numbers too. */
function number(value: unknown, least = -Infinity): number {
  const isNumber = typeof value === "number" || (typeof value === "string" && value.trim() !== "");
  const read = isNumber ? Number(value) : NaN;
  if (!Number.isFinite(read) || read < least) throw new TypeError("not a price or size");
  return read;
}

function levels(side: unknown): Level[] {
  if (side === undefined) return [];
  return (side as unknown[]).map((level) => {
    const [price, size] = level as unknown[];
    return [number(price), number(size, 0)];
  });
}

/** Reads `{"type":"snapshot","bids":[[price,size]],"asks":[...]}`; any other type is a delta. Numbers may be strings. */
export const parseBook: BookParser = (data) => {
  const { type, bids, asks } = data as Record<string, unknown>;
  return { snapshot: type === "snapshot", bids: levels(bids), asks: levels(asks) };
};

class MutableBook implements Book {
  live = false;
  bids: Level[] = [];
  asks: Level[] = [];
  epoch = 0;

  apply({ snapshot, bids, asks }: BookUpdate): void {
    if (snapshot) {
      [this.live, this.bids, this.asks] = [true, [], []];
    } else if (!this.live) {
      return;
    }
    const fits = bids.every((level) => set(this.bids, level, -1)) && asks.every((level) => set(this.asks, level, 1));
    if (!fits) this.live = false;
  }
}

/** Sets a level of a side that is sorted by price times `sign`; returns whether all levels fit. */
function set(side: Level[], [price, size]: Level, sign: number): boolean {
  let [low, high] = [0, side.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (side[middle]![0] * sign < price * sign) low = middle + 1;
    else high = middle;
  }
  const isKnown = side[low]?.[0] === price;
  if (size > 0) side.splice(low, isKnown ? 1 : 0, [price, size]);
  else if (isKnown) side.splice(low, 1);
  if (side.length <= BOOK_LEVELS_MAX) return true;
  side.pop();
  return false;
}

/**
 * Order books by topic, for feeds that send a snapshot and then deltas. A lost or conflated tick ends a book: it is not {@link Book.live}, and ignores
 * deltas, until the next snapshot.
 */
export class BookView {
  readonly #parse: BookParser;
  readonly #books = new Map<string, MutableBook>();
  #notStored = 0;
  /** Detaches it from its subscription: it keeps what it has, and no longer changes. */
  close: () => void = () => {};

  constructor(options: { parse?: BookParser } = {}) {
    this.#parse = options.parse ?? parseBook;
  }

  /** The book of a topic; undefined: no tick has arrived. */
  get(topic: string): Book | undefined {
    return this.#books.get(topic);
  }

  topics(): string[] {
    return [...this.#books.keys()];
  }

  /** Ticks of topics beyond 65,536 books. */
  get notStored(): number {
    return this.#notStored;
  }

  /** @internal */
  handle(event: SubscriptionEvent): void {
    if (event.type === "gap" || event.type === "conflated" || (event.type === "recovered" && !event.recovered)) {
      const book = this.#books.get(event.topic);
      if (book !== undefined) book.live = false;
    }
    if (event.type !== "tick") return;
    let book = this.#books.get(event.topic);
    if (book === undefined) {
      if (this.#books.size >= BOOKS_MAX) return void (this.#notStored += 1);
      this.#books.set(event.topic, (book = new MutableBook()));
    }
    if (book.epoch !== event.epoch) [book.epoch, book.live] = [event.epoch, false];
    try {
      book.apply(this.#parse(event.data));
    } catch {
      book.live = false;
    }
  }
}
