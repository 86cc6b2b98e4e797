// What the client reports to the application.

import type { From, Key, NotRecovered, Policy, TickFields } from "./protocol.js";

export type ClientState = "disconnected" | "connecting" | "connected";
export type SubscriptionState = "unsubscribed" | "subscribing" | "subscribed";

const decoder = new TextDecoder();

/** One update of a topic. */
export class Tick {
  readonly type = "tick";
  readonly topic: string;
  /** The topic's life; see {@link Position}. */
  readonly epoch: number;
  readonly sequence: number;
  /** The producer's time, in nanoseconds since 1970, rounded to 256 ns. */
  readonly timeNs: number;
  /** When the server received it, in the same unit. With the codec `json` this is {@link timeNs}. */
  readonly ingestNs: number;
  /** The part of the topic that it updates, such as a price level; 0: the whole topic. */
  readonly key: Key;
  /** Whether it is a last value, sent because the subscription started or resumed, and not an update. */
  readonly snapshot: boolean;
  /** The producer's number for the type of the payload; 0: none. Always 0 with the codec `json`. */
  readonly schema: number;
  #payload: unknown;
  #isText: boolean;

  constructor(topic: string, epoch: number, sequence: number, fields: TickFields) {
    this.topic = topic;
    this.epoch = epoch;
    this.sequence = sequence;
    this.timeNs = fields.timeNs;
    this.ingestNs = fields.ingestNs;
    this.key = fields.key;
    this.snapshot = fields.snapshot;
    this.schema = fields.schema;
    this.#payload = fields.payload;
    this.#isText = fields.isText;
  }

  /**
   * The payload: the value, if it is JSON, else a `Uint8Array`. With native frames, JSON is parsed when this is first read, and bytes are a view
   * into the whole message: copy them if you keep them. Not a field of its own: `{...tick}` does not have it.
   */
  get data(): unknown {
    if (this.#isText) {
      this.#payload = JSON.parse(decoder.decode(this.#payload as Uint8Array));
      this.#isText = false;
    }
    return this.#payload;
  }

  /** A plain object with all fields and `data`, for `JSON.stringify`. */
  toJSON(): object {
    return { ...this, data: this.data };
  }
}

/** Ticks `[from, to)` of a topic that do not arrive: lost (`gap`), or replaced by newer ones (`conflated`). */
export interface Skipped {
  readonly type: "gap" | "conflated";
  readonly topic: string;
  readonly epoch: number;
  readonly from: number;
  readonly to: number;
  /** Ticks in the range. */
  readonly count: number;
}

/** The server's answer to the position from which the client resumed. */
export interface Recovered {
  readonly type: "recovered";
  readonly topic: string;
  readonly epoch: number;
  /** The topic's last sequence when the server looked; 0: unknown. */
  readonly sequence: number;
  /** Whether every tick after the position follows. */
  readonly recovered: boolean;
  /** Why not; empty if recovered. */
  readonly reason: NotRecovered | "";
}

/** A topic's source fell silent, or is back. A reconnect clears it; the server reports a topic that is still stale again. */
export interface Stale {
  readonly type: "stale";
  readonly topic: string;
  readonly stale: boolean;
  readonly sinceNs: number;
}

/** A source of the server changed its state: `up`, `fallback` or `down`. */
export interface SourceChange {
  readonly type: "source";
  readonly source: string;
  readonly state: string;
  readonly sinceNs: number;
}

/** The subscription changed its state, or waits to be sent again. */
export interface SubscriptionChange {
  readonly type: "subscription";
  readonly state: SubscriptionState;
  /** A close code, or a code of the server's errors; 0: none. */
  readonly code: number;
  readonly reason: string;
  /** Time until it is sent again, if the server refused it for its rate. */
  readonly retryInMs?: number;
}

/** The client changed its state, or an attempt to connect failed. */
export interface StateChange {
  readonly type: "state";
  readonly state: ClientState;
  /** The close code; 0: none. */
  readonly code: number;
  readonly reason: string;
  /** Time until the next attempt. */
  readonly retryInMs?: number;
}

/** Answer to a ping. */
export interface Latency {
  readonly type: "latency";
  readonly roundTripMs: number;
  /** This clock minus the server's; null: unknown. With the codec `json` it is the producers' clock if they stamp their ticks. */
  readonly clockOffsetMs: number | null;
}

/** The server has verified the token, or warns that it expires. */
export interface Expires {
  readonly type: "expires";
  /** 0: never. */
  readonly expiresInS: number;
}

/** Something failed, and the client goes on. */
export interface Failure {
  readonly type: "error";
  /** A code of the server's errors; 0: none. */
  readonly code: number;
  readonly reason: string;
}

/** The queue of an iterator was full; this many of the oldest events were dropped. */
export interface Lagged {
  readonly type: "lagged";
  readonly dropped: number;
}

/** Every event of a subscription. */
export type SubscriptionEvent = Tick | Skipped | Recovered | Stale | SubscriptionChange | Failure | Lagged;
/** Every event of a client. */
export type ClientEvent = StateChange | Latency | Expires | SourceChange | Failure | Lagged;

/** Options of a subscription. */
export interface SubscribeOptions {
  /**
   * Where it starts.
   * - `live`, the default: with the next tick of each topic.
   * - `latest`: with the last tick of each topic and key.
   * - `oldest`: with the oldest tick that the server keeps.
   * - `{positions}`: after these positions; other topics as with `oldest`.
   *
   * Saved positions of its topics take precedence: see {@link ClientOptions.positions}.
   */
  from?: From;
  /** What the server does while this client is slow; without it, the server's default. */
  policy?: Policy | null;
  /** Ticks per second of each topic, from 0.001 to 1,000; without it, all of them. */
  maxRate?: number | null;
}

/** The result of a publish. */
export interface Published {
  readonly topic: string;
  readonly epoch: number;
  readonly sequence: number;
  /** Whether the server had the tick already. */
  readonly duplicate: boolean;
}

/** A publish without an acknowledgement. */
export class PublishError extends Error {
  /** `refused` by the server; `not_sent`; or `unknown`: it may have been published or not. */
  readonly outcome: "refused" | "not_sent" | "unknown";
  /** A code of the server's errors, or the close code; 0: none. */
  readonly code: number;

  constructor(outcome: "refused" | "not_sent" | "unknown", code: number, reason: string) {
    super(reason);
    this.name = "PublishError";
    this.outcome = outcome;
    this.code = code;
  }
}
