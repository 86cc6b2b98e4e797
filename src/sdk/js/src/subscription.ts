// A subscription, as the application sees it.

import type { Core } from "./core/core.js";
import type { SubscriptionEvent, SubscriptionState, Tick } from "./core/events.js";
import type { Policy } from "./core/protocol.js";
import type { SubscriptionRecord } from "./core/subscriptions.js";
import { Emitter, report } from "./emitter.js";
import { QUEUE_MAX, Stream } from "./stream.js";
import { type BookParser, BookView, KeyedView, type View } from "./views.js";

/** The server ended a subscription, or the client its attempts. */
export class ClosedError extends Error {
  /** A close code, or a code of the server's errors. */
  readonly code: number;

  constructor(code: number, reason: string) {
    super(reason === "" ? `closed with code ${code}` : reason);
    this.name = "ClosedError";
    this.code = code;
  }
}

/** What a subscription asks of its client. */
export interface Driver {
  /** Calls the core, then does what the core wants. */
  run<Result>(call: (core: Core, now: number) => Result): Result;
}

/**
 * A subscription of all topics that match a pattern. It lasts until {@link unsubscribe}, over any number of connections.
 *
 * Iterating over it gives its ticks; {@link events} gives everything. Iterators and listeners may be combined. An iterator ends when the
 * subscription does or the application disconnects, and throws a {@link ClosedError} if that was not the application's wish.
 */
export class Subscription extends Emitter<SubscriptionEvent> implements AsyncIterable<Tick> {
  readonly #driver: Driver;
  readonly #record: SubscriptionRecord;
  readonly #views: View[] = [];
  readonly #ticks = new Set<Stream<Tick>>();
  readonly #all = new Set<Stream<SubscriptionEvent>>();

  /** @internal */
  constructor(driver: Driver, record: SubscriptionRecord) {
    super();
    this.#driver = driver;
    this.#record = record;
    record.owner = this;
  }

  get pattern(): string {
    return this.#record.pattern;
  }

  get state(): SubscriptionState {
    return this.#record.state;
  }

  /** Limits the ticks per second of each topic, from 0.001 to 1,000; null: no limit. Takes effect on the live subscription. */
  setRate(maxRate: number | null): void {
    this.#driver.run((core, now) => core.update(now, this.#record, this.#record.policy, maxRate));
  }

  /** Changes what the server does while this client is slow; null: the server's default. */
  setPolicy(policy: Policy | null): void {
    this.#driver.run((core, now) => core.update(now, this.#record, policy, this.#record.maxRate));
  }

  /** Ends it, and forgets the positions of its topics. */
  unsubscribe(): void {
    this.#driver.run((core, now) => core.unsubscribe(now, this.#record));
  }

  /** Its ticks from now on. While `queueMax` of them wait, each new one drops the oldest, and a `lagged` event says how many. */
  ticks(options: { queueMax?: number } = {}): AsyncIterableIterator<Tick> {
    const onDrop = (dropped: number) => {
      this.emit({ type: "lagged", dropped });
      return null;
    };
    const stream = new Stream<Tick>(options.queueMax ?? QUEUE_MAX, onDrop, (closed) => this.#ticks.delete(closed));
    return this.#open(stream, this.#ticks);
  }

  /** All its events from now on, `lagged` among them. */
  events(options: { queueMax?: number } = {}): AsyncIterableIterator<SubscriptionEvent> {
    const onDrop = (dropped: number): SubscriptionEvent => ({ type: "lagged", dropped });
    const stream = new Stream(options.queueMax ?? QUEUE_MAX, onDrop, (closed) => this.#all.delete(closed));
    return this.#open(stream, this.#all);
  }

  [Symbol.asyncIterator](): AsyncIterableIterator<Tick> {
    return this.ticks();
  }

  /** The last value of each topic and key, from now on: attach it before the first tick. */
  keyed(options: { entriesMax?: number } = {}): KeyedView {
    return this.#attach(new KeyedView(options));
  }

  /** Order books, from now on: attach it before the first tick. */
  book(options: { parse?: BookParser } = {}): BookView {
    return this.#attach(new BookView(options));
  }

  /** @internal Takes an event of the core. */
  handle(event: SubscriptionEvent): void {
    for (const view of this.#views) {
      try {
        view.handle(event);
      } catch (error) {
        report(error);
      }
    }
    if (event.type === "tick") for (const stream of this.#ticks) stream.push(event);
    for (const stream of this.#all) stream.push(event);
    if (event.type === "subscription" && event.state === "unsubscribed") this.end(event.code, event.reason);
    this.emit(event);
  }

  /** @internal Ends the iterators. 0: the application wished it. */
  end(code: number, reason: string): void {
    const error = code === 0 ? null : new ClosedError(code, reason);
    for (const stream of [...this.#ticks, ...this.#all]) stream.end(error);
    this.#ticks.clear();
    this.#all.clear();
  }

  #open<Event>(stream: Stream<Event>, streams: Set<Stream<Event>>): Stream<Event> {
    if (this.state === "unsubscribed") stream.end(null);
    else streams.add(stream);
    return stream;
  }

  #attach<Kind extends View>(view: Kind): Kind {
    this.#views.push(view);
    return view;
  }
}
