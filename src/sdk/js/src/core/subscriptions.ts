// The client's subscriptions and positions. They outlive connections.

import { Backoff } from "./backoff.js";
import type { SubscribeOptions, SubscriptionState } from "./events.js";
import { Pattern } from "./pattern.js";
import {
  type From,
  type Moment,
  type Policy,
  type Position,
  POSITION_NAMES_BYTES_MAX,
  type Positions,
  POSITIONS_MAX,
  POSITIONS_PER_SUBSCRIPTION_MAX,
  SUBSCRIPTIONS_MAX,
} from "./protocol.js";

const encoder = new TextEncoder();

/** Policy and rate. */
export type Delivery = readonly [policy: Policy | null, maxRate: number | null];

/** The entries of positions that an application passes in, copied. Throws if one is no position. */
function checked(positions: Positions): [string, Position][] {
  return Object.entries(positions).map(([topic, { epoch, sequence }]) => {
    if (![epoch, sequence].every((value) => Number.isSafeInteger(value) && value >= 0)) {
      throw new TypeError(`${topic} has no valid position`);
    }
    return [topic, { epoch, sequence }];
  });
}

/** One subscription. */
export class SubscriptionRecord {
  readonly pattern: string;
  readonly matcher: Pattern;
  readonly from: From;
  delivery: Delivery;
  /** What the server acknowledged last: what remains if it refuses another. */
  confirmed: Delivery;
  state: SubscriptionState = "subscribing";
  /** Whether it was last sent to start with the next tick of each topic. */
  isLive?: boolean;
  /** When it became live: where it resumes topics that had no tick since. */
  moment: Moment | undefined;
  /** Positions with which it was last sent. */
  carried: [string, Position][] = [];
  /** Whether any server has acknowledged it. */
  isAcknowledged?: boolean;
  /** Whether it was sent on this connection, and not refused. */
  isSent?: boolean;
  /** Delays after the server refused it for its rate. */
  readonly backoff: Backoff;
  /** The object that the application has. */
  owner: unknown;

  constructor(pattern: string, options: SubscribeOptions, random: () => number) {
    this.pattern = pattern;
    this.matcher = new Pattern(pattern);
    this.from = options.from ?? "live";
    this.delivery = this.confirmed = [options.policy ?? null, options.maxRate ?? null];
    this.backoff = new Backoff(random);
  }

  /** Whether it comes back with the last values, because it did not ask for every tick. */
  get conflates(): boolean {
    const [policy, maxRate] = this.delivery;
    return (policy === "conflate" || maxRate !== null) && (this.from === "live" || this.from === "latest");
  }
}

/** A subscription, and the positions that it resumes from. */
export type Resumption = [SubscriptionRecord, [string, Position][]];

/** Whether positions are within the server's limits for one subscription. */
export function fit(positions: [string, Position][]): boolean {
  const nameBytes = positions.reduce((sum, [topic]) => sum + encoder.encode(topic).length, 0);
  return positions.length <= POSITIONS_PER_SUBSCRIPTION_MAX && nameBytes <= POSITION_NAMES_BYTES_MAX;
}

/** Subscriptions by the topics that they match: a look-up, and a comparison for each pattern with a wildcard. */
class Finder {
  readonly #exact = new Map<string, [at: number, record: SubscriptionRecord]>();
  readonly #wild = new Map<string, [at: number, record: SubscriptionRecord]>();
  #added = 0;

  /** Adds a subscription after all others. */
  add(record: SubscriptionRecord): void {
    this.#added += 1;
    (record.matcher.isExact ? this.#exact : this.#wild).set(record.pattern, [this.#added, record]);
  }

  remove({ pattern }: SubscriptionRecord): void {
    this.#exact.delete(pattern);
    this.#wild.delete(pattern);
  }

  /** Those that match a topic, in their order. */
  *matching(topic: string): IterableIterator<SubscriptionRecord> {
    let exact = this.#exact.get(topic);
    const tokens = topic.split(".");
    for (const [at, record] of this.#wild.values()) {
      if (exact !== undefined && exact[0] < at) {
        yield exact[1];
        exact = undefined;
      }
      if (record.matcher.matches(tokens)) yield record;
    }
    if (exact !== undefined) yield exact[1];
  }
}

/** Subscriptions in the order in which they were made, and the positions in their topics. */
export class Subscriptions {
  readonly byPattern = new Map<string, SubscriptionRecord>();
  readonly #finder = new Finder();
  /** A position is replaced, never changed. */
  readonly positions: Map<string, Position>;
  /** Changes with each subscription made or ended. */
  version = 0;
  /** Whether positions have changed since they were saved. */
  isChanged = false;

  constructor(positions: Positions) {
    this.positions = new Map(checked(positions));
  }

  get all(): SubscriptionRecord[] {
    return [...this.byPattern.values()];
  }

  add(record: SubscriptionRecord): void {
    if (this.byPattern.has(record.pattern)) throw new Error(`${record.pattern} is subscribed already`);
    if (this.byPattern.size >= SUBSCRIPTIONS_MAX) throw new Error("too many subscriptions");
    const positions = typeof record.from === "string" ? [] : checked(record.from.positions);
    this.byPattern.set(record.pattern, record);
    this.#finder.add(record);
    this.version += 1;
    for (const [topic, position] of positions) {
      // A position that this client reached itself is newer.
      if (!this.positions.has(topic)) this.#set(topic, position);
    }
  }

  /** Removes a subscription without its positions, or does nothing. */
  remove(record: SubscriptionRecord): boolean {
    if (this.byPattern.get(record.pattern) !== record) return false;
    this.byPattern.delete(record.pattern);
    this.#finder.remove(record);
    this.version += 1;
    record.state = "unsubscribed";
    return true;
  }

  /** Removes the positions of topics that only this subscription matched. */
  forget(record: SubscriptionRecord): void {
    for (const topic of this.onlyOf(record, this.positions)) this.#delete(topic);
  }

  /** The keys of a map, names of topics, that a subscription matches and no other one: of all, or of those that were sent. */
  onlyOf(record: SubscriptionRecord, map: ReadonlyMap<string, unknown>, isOfSent = false): string[] {
    const { pattern, matcher } = record;
    const isOnly = (name: string) =>
      this.matching(name).every((other) => other === record || (isOfSent && !other.isSent));
    if (matcher.isExact) return map.has(pattern) && isOnly(pattern) ? [pattern] : [];
    return [...map.keys()].filter((name) => matcher.matches(name.split(".")) && isOnly(name));
  }

  matching(topic: string): SubscriptionRecord[] {
    return [...this.#finder.matching(topic)];
  }

  /** All subscriptions, first those that resume, each topic's position with the first that matches it. */
  resumptions(): Resumption[] {
    const { all } = this;
    const resumptions = new Map<SubscriptionRecord, Resumption>();
    const finder = new Finder();
    for (const record of [...all.filter((s) => !s.conflates), ...all.filter((s) => s.conflates)]) {
      resumptions.set(record, [record, []]);
      finder.add(record);
    }
    for (const position of this.positions) {
      // The first one only: the others are not compared.
      const [first] = finder.matching(position[0]);
      if (first !== undefined) resumptions.get(first)![1].push(position);
    }
    return [...resumptions.values()];
  }

  /** One subscription on an open connection, with the positions of topics that no other one receives. */
  resumption(record: SubscriptionRecord): Resumption {
    return [record, this.onlyOf(record, this.positions, true).map((topic) => [topic, this.positions.get(topic)!])];
  }

  /** Moves a position forward, or to another life of the topic. */
  advance(topic: string, epoch: number, sequence: number): void {
    const position = this.positions.get(topic);
    if (position?.epoch !== epoch || position.sequence < sequence) this.#set(topic, { epoch, sequence });
  }

  /** Applies the server's answer to a position that it did not recover. */
  notRecovered(topic: string, epoch: number, sequence: number, reason: string): void {
    const position = this.positions.get(topic);
    if (position === undefined) return;
    if (reason === "unknown_topic") return this.#delete(topic);
    // The answer has reported that the old life is lost; all ticks of the new one follow. Sequence 0: the server did not look.
    if (position.epoch !== epoch) this.#set(topic, { epoch, sequence: 0 });
    else if (sequence > 0 && sequence < position.sequence) this.#set(topic, { epoch, sequence });
  }

  copy(): Positions {
    return Object.fromEntries([...this.positions].map(([topic, position]) => [topic, { ...position }]));
  }

  #set(topic: string, position: Position): void {
    if (!this.positions.has(topic) && this.positions.size >= POSITIONS_MAX) return;
    this.positions.set(topic, position);
    this.isChanged = true;
  }

  #delete(topic: string): void {
    this.positions.delete(topic);
    this.isChanged = true;
  }
}
