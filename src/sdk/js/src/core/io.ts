// What goes in and out of the core, besides calls.

import type { ClientEvent, SubscriptionEvent } from "./events.js";
import type { Codec, Positions } from "./protocol.js";
import type { SubscriptionRecord } from "./subscriptions.js";

/** What the driver must do, in order. */
export type Action =
  | { do: "dial"; url: string; protocol: string }
  /** Not `isOptional`, the answer to a ping, while more than `OUTPUT_BYTES_MAX` wait for the socket. */
  | { do: "send"; message: string | Uint8Array; isOptional: boolean }
  /** Closes the socket and forgets it: the core gets nothing from it any more. */
  | { do: "hangUp"; code: number; reason: string }
  | { do: "askToken"; why: "connect" | "refresh" }
  /** Saves positions, once the events are handed out. */
  | { do: "save" };

/** An event and the subscription that it belongs to; null: the client. */
export type Emitted = [SubscriptionRecord, SubscriptionEvent] | [null, ClientEvent];

export interface CoreOptions {
  url: string;
  codec: Codec;
  name: string;
  /** A token; empty: none. */
  token: string;
  /** Whether `askToken` is answered. */
  asksToken: boolean;
  positions: Positions;
  savesPositions: boolean;
  offlineQueueMax: number;
  /** Returns numbers in [0, 1). */
  random: () => number;
  /** Wall-clock time minus `now`, in ms. */
  wallOffsetMs: number;
}
