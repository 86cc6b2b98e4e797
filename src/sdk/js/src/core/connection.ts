// The state of one connection, which ends with it.

import type { Delivery, SubscriptionRecord } from "./subscriptions.js";
import { HELLO, type Position, REQUESTS_MAX } from "./protocol.js";
import { Topics } from "./topics.js";

/** A request without an answer. */
export type Request =
  | { of: "subscribe"; record: SubscriptionRecord }
  | { of: "update"; record: SubscriptionRecord; delivery: Delivery }
  | { of: "publish" | "refresh" | "unsubscribe" };

/** What the client is doing about its connection. */
export type Phase =
  /** Makes no attempts. */
  | "idle"
  /** Waits for a token to dial with. */
  | "asking"
  /** Waits for the next attempt. */
  | "waiting"
  /** Has dialed, or said hello. */
  | "opening"
  | "connected";

export class Connection {
  readonly topics = new Topics();
  /** Positions sent and not answered yet. */
  readonly requested = new Map<string, Position>();
  /** Positions that were not sent, until their topic is announced, and what becomes of the ticks after them; and whether the server repeats those before. */
  readonly replaced = new Map<string, [position: Position, kind: "gap" | "conflated", isRepeated: boolean]>();
  /** Longest message that the server takes. */
  sizeMax!: number;
  /** Epoch of the server. */
  epoch!: number;
  /** Whether the server recognises message ids. */
  knowsIds: unknown;
  /** Whether a subscription may start at a moment. */
  knowsMoments: unknown;
  /** Infinity: not yet. */
  welcomedAt = Infinity;
  /** The server's reason for ending it. */
  closing?: { code: number; reason: string; afterMs: number };
  /** Whether anything has arrived since the last ping. */
  hasHeard?: boolean;
  #lastPing = 0;
  /** When the last ping was sent; undefined: it is answered. An older pong comes before its answer, or not at all. */
  #pingedAt: number | undefined;
  #lastRequest = HELLO;
  readonly #requests = new Map<number, Request>();

  /** `token` is the one in the hello. */
  constructor(public token: string) {}

  /** Returns the id of a new request. */
  request(request: Request): number {
    if (this.#requests.size >= REQUESTS_MAX) throw new Error("too many requests");
    this.#lastRequest += 1;
    this.#requests.set(this.#lastRequest, request);
    return this.#lastRequest;
  }

  /** The id that the next request gets. */
  get nextRequest(): number {
    return this.#lastRequest + 1;
  }

  answered(request: number): Request | undefined {
    const answered = this.#requests.get(request);
    this.#requests.delete(request);
    return answered;
  }

  /** Returns the token of a new ping. */
  ping(now: number): number {
    this.#lastPing += 1;
    this.#pingedAt = now;
    this.hasHeard = false;
    return this.#lastPing;
  }

  /** Returns when the ping was sent. */
  pong(token: number): number | undefined {
    if (token !== this.#lastPing) return undefined;
    const sentAt = this.#pingedAt;
    this.forgetPing();
    return sentAt;
  }

  /** Round trips across a sleep mean nothing. */
  forgetPing(): void {
    this.#pingedAt = undefined;
  }
}
