// A subscription, as the application sees it.

import type { Core } from "./core/core.js";
import type { SubscriptionEvent, SubscriptionState, Tick } from "./core/events.js";
import { CLOSE_NORMAL, type Policy, QUEUE_MAX } from "./core/protocol.js";
import type { SubscriptionRecord } from "./core/subscriptions.js";
import { Emitter, report } from "./emitter.js";
import { Stream } from "./stream.js";
import { type BookParser, BookView, KeyedView, type View } from "./views.js";

/** The server ended a subscription, or the client its attempts. */
export class ClosedError extends Error {
  /** A close code, or a code of the server's errors. */
  readonly code: number;

  constructor(code: number, reason: string) {
    super(reason || `closed with code ${code}`);
    this.name = "ClosedError";
    this.code = code;
  }
}

/** What a subscription asks of its client. */
export interface Driver {
  /** Why it makes no attempts any more; null: the application's wish; undefined: it does, or has not begun. */
  readonly ended: Error | null | undefined;
  /** Calls the core, then does what the core wants. */
  run<Result>(call: (core: Core) => Result): Result;
  /** A reader has finished an event. */
  handleRead(): void;
}

/** What an iterator throws at its end; null: nothing, because the application wished it. */
export function endError(code: number, reason: string): ClosedError | null {
  return code === 0 || code === CLOSE_NORMAL ? null : new ClosedError(code, reason);
}

/**
 * A subscription of all topics that match a pattern. It lasts until {@link unsubscribe}, over any number of connections.
 *
 * Iterating over it gives its ticks; {@link events} gives everything. Iterators and listeners may be combined. An iterator ends when the
 * subscription does or the application disconnects, and throws a {@link ClosedError} unless the application ended it; one that
 * is made afterwards ends at once.
 */
export class Subscription extends Emitter<SubscriptionEvent> implements AsyncIterable<Tick> {
  readonly #driver: Driver;
  readonly #record: SubscriptionRecord;
  readonly #views = new Set<View>();
  readonly #ticks = new Set<Stream<Tick>>();
  readonly #all = new Set<Stream<SubscriptionEvent>>();
  /** Why it has ended, as {@link Driver.ended}. */
  #ended: Error | null | undefined;

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
    this.#driver.run((core) => core.update(this.#record, this.#record.delivery[0], maxRate));
  }

  /** Changes what the server does while this client is slow; null: the server's default. */
  setPolicy(policy: Policy | null): void {
    this.#driver.run((core) => core.update(this.#record, policy, this.#record.delivery[1]));
  }

  /** Ends it, and forgets the positions of its topics. */
  unsubscribe(): void {
    this.#driver.run((core) => core.unsubscribe(this.#record));
  }

  /** Its ticks from now on. While `queueMax` of them wait, each new one drops the oldest, and a `lagged` event says how many. */
  ticks(options: { queueMax?: number } = {}): AsyncIterableIterator<Tick> {
    const onDrop = (dropped: number) => {
      this.emit({ type: "lagged", dropped });
      return null;
    };
    return this.#open(this.#ticks, options.queueMax, onDrop);
  }

  /** All its events from now on, `lagged` among them. */
  events(options: { queueMax?: number } = {}): AsyncIterableIterator<SubscriptionEvent> {
    return this.#open(this.#all, options.queueMax, (dropped) => ({ type: "lagged", dropped }));
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

  /** @internal Events that its iterators have not finished. */
  get unread(): SubscriptionEvent[] {
    return [...this.#ticks, ...this.#all].flatMap((stream) => stream.unread);
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
    if (event.type === "subscription" && event.state === "unsubscribed") {
      this.end((this.#ended = endError(event.code, event.reason)));
    }
    this.emit(event);
  }

  /** @internal Ends the iterators after what they hold. */
  end(error: Error | null): void {
    for (const stream of [...this.#ticks, ...this.#all]) stream.end(error);
  }

  #open<Event>(
    streams: Set<Stream<Event>>,
    queueMax = QUEUE_MAX,
    onDrop: (dropped: number) => Event | null,
  ): Stream<Event> {
    const onClose = (closed: Stream<Event>) => streams.delete(closed);
    const stream = new Stream(queueMax, onDrop, onClose, () => this.#driver.handleRead());
    const ended = this.state === "unsubscribed" ? this.#ended : this.#driver.ended;
    if (ended === undefined) streams.add(stream);
    else stream.end(ended);
    return stream;
  }

  #attach<Kind extends View>(view: Kind): Kind {
    this.#views.add(view);
    view.close = () => void this.#views.delete(view);
    return view;
  }
}
