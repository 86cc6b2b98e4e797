export { Client, type ClientOptions, type PublishOptions, type WebSocketClass, type WebSocketLike } from "./client.js";
export {
  type ClientEvent,
  type ClientState,
  type Expires,
  type Failure,
  type Lagged,
  type Latency,
  type Published,
  PublishError,
  type Recovered,
  type Skipped,
  type SourceChange,
  type Stale,
  type StateChange,
  type SubscribeOptions,
  type SubscriptionChange,
  type SubscriptionEvent,
  type SubscriptionState,
  type Tick,
} from "./core/events.js";
export { matches } from "./core/pattern.js";
export type { From, Key, NotRecovered, Policy, Position, Positions } from "./core/protocol.js";
export type { Emitter } from "./emitter.js";
export { ClosedError, Subscription } from "./subscription.js";
export { type Book, type BookParser, type BookUpdate, BookView, KeyedView, type Level } from "./views.js";
