// The client's subscriptions and positions. They outlive connections.

import { Backoff } from "./backoff.js";
import type { SubscribeOptions, SubscriptionState } from "./events.js";
import { matches } from "./pattern.js";
import { type From, type Policy, type Position, type Positions, POSITIONS_MAX, SUBSCRIPTIONS_MAX } from "./protocol.js";

/** One subscription. */
export class SubscriptionRecord {
  readonly pattern: string;
  readonly from: From;
  policy: Policy | null;
  maxRate: number | null;
  state: SubscriptionState = "subscribing";
  /** Whether any server has acknowledged it. */
  isAcknowledged = false;
  /** Delays after the server refused it for its rate. */
  readonly backoff: Backoff;
  /** The object that the application has. */
  owner: unknown = null;

  constructor(pattern: string, options: SubscribeOptions, random: () => number) {
    this.pattern = pattern;
    this.from = options.from ?? "live";
    this.policy = options.policy ?? null;
    this.maxRate = options.maxRate ?? null;
    this.backoff = new Backoff(random);
  }

  /** Whether it comes back with the last values, because it did not ask for every tick. */
  get conflates(): boolean {
    return (this.policy === "conflate" || this.maxRate !== null) && (this.from === "live" || this.from === "latest");
  }
}

/** A subscription, and the positions that it resumes from. */
export type Resumption = [SubscriptionRecord, [string, Position][]];

/** Subscriptions in the order in which they were made, and the positions in their topics. */
export class Subscriptions {
  readonly all: SubscriptionRecord[] = [];
  readonly positions = new Map<string, Position>();
  /** Changes with each subscription made or ended. */
  version = 0;
  /** Whether positions have changed since the last {@link save}. */
  isChanged = false;

  constructor(positions: Positions) {
    for (const [topic, position] of Object.entries(positions)) this.positions.set(topic, { ...position });
  }

  add(record: SubscriptionRecord): void {
    if (this.all.some(({ pattern }) => pattern === record.pattern)) {
      throw new Error(`${record.pattern} is subscribed already`);
    }
    if (this.all.length >= SUBSCRIPTIONS_MAX) throw new Error("too many subscriptions");
    this.all.push(record);
    this.version += 1;
    if (typeof record.from === "string") return;
    for (const [topic, position] of Object.entries(record.from.positions)) {
      // A position that this client reached itself is newer.
      if (!this.positions.has(topic)) this.#set(topic, { ...position });
    }
  }

  /** Removes a subscription without its positions, or does nothing. */
  remove(record: SubscriptionRecord): boolean {
    const at = this.all.indexOf(record);
    if (at < 0) return false;
    this.all.splice(at, 1);
    this.version += 1;
    record.state = "unsubscribed";
    return true;
  }

  /** Removes the positions of topics that only this pattern matched. */
  forget(pattern: string): void {
    for (const topic of this.positions.keys()) {
      if (matches(pattern, topic) && !this.isMatched(topic)) this.#delete(topic);
    }
  }

  isMatched(topic: string): boolean {
    return this.all.some(({ pattern }) => matches(pattern, topic));
  }

  matching(topic: string): SubscriptionRecord[] {
    return this.all.filter(({ pattern }) => matches(pattern, topic));
  }

  /** All subscriptions, first those that resume, each topic's position with the first that matches it. */
  resumptions(): Resumption[] {
    const order = [...this.all.filter((s) => !s.conflates), ...this.all.filter((s) => s.conflates)];
    const resumptions = order.map((record): Resumption => [record, []]);
    for (const [topic, position] of this.positions) {
      const found = resumptions.find(([{ pattern }]) => matches(pattern, topic));
      found?.[1].push([topic, { ...position }]);
    }
    return resumptions;
  }

  /** One subscription on an open connection, with the positions of topics that no other one receives. */
  resumption(record: SubscriptionRecord): Resumption {
    const others = this.all.filter((other) => other !== record);
    const isOwn = ([topic]: [string, Position]) =>
      matches(record.pattern, topic) && !others.some(({ pattern }) => matches(pattern, topic));
    return [record, [...this.positions].filter(isOwn).map(([topic, position]) => [topic, { ...position }])];
  }

  /** Moves a position forward, or to another life of the topic. */
  advance(topic: string, epoch: number, sequence: number): void {
    const position = this.positions.get(topic);
    if (position === undefined) return this.#set(topic, { epoch, sequence });
    if (position.epoch === epoch && position.sequence >= sequence) return;
    position.epoch = epoch;
    position.sequence = sequence;
    this.isChanged = true;
  }

  /** Applies the server's answer to a position that it did not recover. */
  notRecovered(topic: string, epoch: number, sequence: number, reason: string): void {
    const position = this.positions.get(topic);
    if (position === undefined) return;
    if (reason === "unknown_topic") return this.#delete(topic);
    // The answer told of the loss of the old life, and all of the new one follows. Sequence 0: the server did not look.
    if (position.epoch !== epoch) this.#set(topic, { epoch, sequence: 0 });
    else if (sequence > 0 && sequence < position.sequence) this.#set(topic, { epoch, sequence });
  }

  /** The positions to save. */
  save(): Positions {
    this.isChanged = false;
    return this.copy();
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
