// The client's token, and when to ask for another.

import { Backoff } from "./backoff.js";

export class Token {
  /** Empty: none. */
  value: string;
  /** When it should not be used for another connection. */
  staleAt: number;
  /** Whether the application was asked for another, or the server has not answered to it. */
  isRefreshing = false;
  /** Delays after the application had none, or the server would not verify it. */
  readonly backoff: Backoff;

  constructor(
    value: string,
    readonly isAskedFor: boolean,
    random: () => number,
  ) {
    this.value = value;
    this.staleAt = isAskedFor ? 0 : Infinity;
    this.backoff = new Backoff(random);
  }

  replace(value: string): void {
    this.value = value;
    this.staleAt = Infinity;
  }

  /** The server says that it expires in this time; 0: never. Returns when to replace it. */
  handleExpires(now: number, expiresInS: number): number {
    // The server warns only of tokens that lived longer than its warning time, so this does not wait for a warning.
    this.staleAt = this.isAskedFor && expiresInS > 0 ? now + expiresInS * 750 : Infinity;
    this.isRefreshing = false;
    this.backoff.reset();
    return this.staleAt;
  }
}
