// When to reconnect: exponential back-off with full jitter ("Exponential Backoff And Jitter", AWS architecture blog).

import {
  BACKOFF_BASE_MS,
  BACKOFF_CAP_MS,
  CLOSE_NOT_ADMITTED,
  NOT_ADMITTED_MS,
  RECONNECT_AFTER_MS_MAX,
} from "./protocol.js";

/** Random delays below a bound that doubles with each attempt. */
export class Backoff {
  attempts = 0;
  readonly #random: () => number;

  /** `random` returns numbers in [0, 1). */
  constructor(random: () => number) {
    this.#random = random;
  }

  /** The next delay, in ms. */
  next(): number {
    const bound = Math.min(BACKOFF_BASE_MS * 2 ** this.attempts, BACKOFF_CAP_MS);
    this.attempts += 1;
    return Math.floor(this.#random() * (bound + 1));
  }

  reset(): void {
    this.attempts = 0;
  }
}

/** Returns whether to reconnect after a close code. 0 and 1005: there was none; 1012 and 1013: a proxy restarts or is overloaded. */
export function mayReconnect(code: number): boolean {
  return [0, 1001, 1005, 1006, 1012, 1013, CLOSE_NOT_ADMITTED].includes(code) || (code >= 3000 && code < 3500);
}

/** The least delay that a close code and the server's hint imply, in ms. */
export function leastDelayMs(code: number, reconnectAfterMs: number): number {
  const least = code === CLOSE_NOT_ADMITTED ? NOT_ADMITTED_MS : 0;
  return Math.min(Math.max(reconnectAfterMs, least), RECONNECT_AFTER_MS_MAX);
}
