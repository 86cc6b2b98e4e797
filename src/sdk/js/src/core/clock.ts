// Estimates the offset between this clock and the server's.

import { CLOCK_WINDOW } from "./protocol.js";

/**
 * The minimum of (arrival - the server's time) is the offset plus the fastest delivery. That took between nothing and the shortest round trip, so half of the
 * round trip is subtracted, and half of it is the error. Both minima are over the last {@link CLOCK_WINDOW} pings, because clocks drift.
 */
export class Clock {
  #roundTrips: number[] = [];
  /** The least delay since each of the last pings. */
  #delays: number[] = [Infinity];

  handlePing(): void {
    this.#delays = [...this.#delays, Infinity].slice(-CLOCK_WINDOW);
  }

  handlePong(roundTripMs: number): void {
    this.#roundTrips = [...this.#roundTrips, roundTripMs].slice(-CLOCK_WINDOW);
  }

  handleTick(delayMs: number): void {
    const last = this.#delays.length - 1;
    if (delayMs < this.#delays[last]!) this.#delays[last] = delayMs;
  }

  /** Offset in ms; null: unknown. */
  get offsetMs(): number | null {
    const offset = Math.min(...this.#delays) - Math.min(...this.#roundTrips) / 2;
    return Number.isFinite(offset) ? offset : null;
  }
}
