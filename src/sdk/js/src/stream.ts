// Async iterators over events, with a bounded queue.

/**
 * Events that arrived and were not read yet. When it is full, each new one drops the oldest; the next read reports how many.
 *
 * One reader at a time.
 */
export class Stream<Event> implements AsyncIterableIterator<Event> {
  #queue: Event[] = [];
  /** Index of the oldest event in the queue. */
  #head = 0;
  #dropped = 0;
  /** Events that the reader has taken and not finished: it finishes one by asking for the next. */
  #current: Event[] = [];
  #end: { error: Error | null } | null = null;
  #wake: (() => void) | null = null;

  /** `onDrop` reports dropped events; it may return an event to read in their place. `onRead`: the reader has finished an event. */
  constructor(
    readonly queueMax: number,
    readonly onDrop: (dropped: number) => Event | null,
    readonly onClose: (stream: Stream<Event>) => void,
    readonly onRead = () => {},
  ) {
    if (!(queueMax >= 1)) throw new RangeError("queueMax is out of range");
  }

  /** Events that the reader has not finished. */
  get unread(): Event[] {
    return [...this.#current, ...this.#queue.slice(this.#head)];
  }

  push(event: Event): void {
    if (this.#end !== null) return;
    this.#queue.push(event);
    if (this.#queue.length - this.#head > this.queueMax) {
      this.#head += 1;
      this.#dropped += 1;
    }
    if (this.#head > this.queueMax) {
      this.#queue = this.#queue.slice(this.#head);
      this.#head = 0;
    }
    this.#wake?.();
  }

  /** Ends it after what is queued: by an error, or normally. */
  end(error: Error | null): void {
    this.#end ??= { error };
    this.#wake?.();
  }

  async next(): Promise<IteratorResult<Event>> {
    this.#finish();
    for (;;) {
      if (this.#dropped > 0) {
        const dropped = this.#dropped;
        this.#dropped = 0;
        const event = this.onDrop(dropped);
        if (event !== null) return { value: event, done: false };
      }
      if (this.#head < this.#queue.length) {
        const value = this.#queue[this.#head]!;
        this.#head += 1;
        if (this.#head === this.#queue.length) [this.#queue, this.#head] = [[], 0];
        this.#current = [value];
        return { value, done: false };
      }
      if (this.#end !== null) {
        this.onClose(this);
        if (this.#end.error !== null) throw this.#end.error;
        return { value: undefined, done: true };
      }
      await new Promise<void>((wake) => (this.#wake = wake));
      this.#wake = null;
    }
  }

  /** Called when a loop ends early. */
  async return(): Promise<IteratorResult<Event>> {
    [this.#queue, this.#head, this.#dropped] = [[], 0, 0];
    this.end(null);
    this.onClose(this);
    this.#finish();
    return { value: undefined, done: true };
  }

  #finish(): void {
    this.#current = [];
    this.onRead();
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}
