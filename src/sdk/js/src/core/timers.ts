// Deadlines of the core. Whoever drives the core asks for the next one.

interface Timer {
  at: number;
  run: (now: number, lateMs: number) => void;
}

/** Timers by name; setting one again replaces it. */
export class Timers {
  readonly #timers = new Map<unknown, Timer>();
  #next = Infinity;

  /** Time of the next deadline; Infinity: none. */
  get next(): number {
    return this.#next;
  }

  set(name: unknown, at: number, run: Timer["run"]): void {
    this.#timers.set(name, { at, run });
    this.#look();
  }

  has(name: unknown): boolean {
    return this.#timers.has(name);
  }

  /** Returns whether there was one. */
  clear(name: unknown): boolean {
    const isSet = this.#timers.delete(name);
    this.#look();
    return isSet;
  }

  /** Runs what is due, in the order of the deadlines. */
  run(now: number): void {
    while (this.#next <= now) {
      const [name, { at, run }] = [...this.#timers].find(([, timer]) => timer.at === this.#next)!;
      this.clear(name);
      run(now, now - at);
    }
  }

  #look(): void {
    this.#next = Infinity;
    for (const { at } of this.#timers.values()) this.#next = Math.min(this.#next, at);
  }
}
