// What both codecs share: names, bounds and messages of tickcast.v1 (PROTOCOL.md).

/** Features that the client asks for, by name. Bits of native frames: {@link FEATURE_BITS}. */
export const FEATURES = ["published", "reasons", "counts", "tokens", "sources", "message_ids", "string_keys", "positions", "batches", "since"];
/** All but `string_keys` and `positions`, which exist only in JSON. */
export const FEATURE_BITS = 0xcbb;
/** The bits of `message_ids` and `since`. */
export const MESSAGE_IDS_BIT = 0x80;
export const SINCE_BIT = 0x800;

/** Positions in one subscription; the server's limit. */
export const POSITIONS_PER_SUBSCRIPTION_MAX = 16_384;
/** UTF-8 bytes of the names of these positions; the server's limit. */
export const POSITION_NAMES_BYTES_MAX = 1 << 20;
/** Topics of one connection. */
export const TOPICS_MAX = 1 << 20;
/** Topics whose positions the client keeps. */
export const POSITIONS_MAX = 65_536;
/** Subscriptions of one client. */
export const SUBSCRIPTIONS_MAX = 65_536;
/** Requests without an answer. */
export const REQUESTS_MAX = 1 << 17;
/** Publishes without an answer. */
export const PUBLISHES_UNANSWERED_MAX = 1_024;
/** Bytes of payloads that wait for a connection. */
export const OFFLINE_QUEUE_BYTES_MAX = 256 << 10;
/** Bytes that wait for the socket before pings are left without an answer. */
export const OUTPUT_BYTES_MAX = 1 << 20;
/** Frames of one binary message. */
export const FRAMES_MESSAGE_BYTES_MAX = 64 << 10;

export const BACKOFF_BASE_MS = 500;
export const BACKOFF_CAP_MS = 20_000;
/** A connection that lasted this long resets the back-off. */
export const STABLE_MS = 10_000;
/** Longest delay that a server may ask for. */
export const RECONNECT_AFTER_MS_MAX = 900_000;
/** Shortest delay after {@link CLOSE_NOT_ADMITTED}. */
export const NOT_ADMITTED_MS = 1_000;
export const CONNECT_TIMEOUT_MS = 10_000;
export const PING_INTERVAL_MS = 10_000;
/** A timer later than this means that the machine was asleep. */
export const SUSPENDED_MS = 5_000;
export const PUBLISH_TIMEOUT_MS = 10_000;
/** How long a server certainly knows a message id: half of its default. */
export const MESSAGE_ID_MS = 60_000;
export const SAVE_INTERVAL_MS = 1_000;
/** Pings over which the clock offset takes its minima. */
export const CLOCK_WINDOW = 6;
/** Events that one iterator holds if its options do not say. */
export const QUEUE_MAX = 4_096;

/** Longest time for `getToken`. */
export const TOKEN_TIMEOUT_MS = 30_000;
/** Longest name of a topic, in UTF-16 units; the server's limit is 255 bytes. */
export const NAME_LENGTH_MAX = 255;
/** Longest delay that timers take. */
export const TIMER_MAX_MS = 0x7fff_ffff;
/** Bytes of a close frame's reason are at most 123; the client's are ASCII, but may quote the server. */
export const CLOSE_REASON_CHARS_MAX = 40;

/** Reason of what has taken too long. */
export const NO_ANSWER = "no answer in time";

/** Id of the hello. */
export const HELLO = 1;

/** The client's own codes. Browsers allow 1000 and 3000 to 4999. */
export const CLOSE_NORMAL = 1000;
export const CLOSE_BAD_MESSAGE = 4002;
export const CLOSE_NO_WELCOME = 4008;
export const CLOSE_SILENT = 4011;

export const CODE_LOST = 1006;
export const CODE_PROTOCOL = 1002;
export const CLOSE_TOKEN_EXPIRED = 3005;
export const CLOSE_NOT_ADMITTED = 3504;
export const ERROR_BAD_REQUEST = 100;
export const ERROR_TOO_LARGE = 107;
export const ERROR_RATE_LIMITED = 109;

/** The last tick that a client has of a topic: `sequence` within the topic's life `epoch`. */
export interface Position {
  epoch: number;
  sequence: number;
}

/** When a subscription became live, by the server with this epoch: where topics without a position start. */
export interface Moment {
  epoch: number;
  since: number;
}

/** Positions by topic. */
export type Positions = Record<string, Position>;

/** What the server does with ticks while the client is slow; see PROTOCOL.md. */
export type Policy = "conflate" | "drop" | "keep" | "disconnect";

/** Where a subscription starts: see {@link SubscribeOptions.from}. */
export type From = "live" | "latest" | "oldest" | { positions: Positions };

/** A number up to 2^53 - 1, and a string of its digits above: JavaScript numbers are not exact there. */
export type Key = number | string;

/** Why a position was not recovered. `too_many`: it was not sent, because the client had too many. */
export type NotRecovered = "epoch" | "too_old" | "unknown_topic" | "ahead" | "too_many";

/** A start as it is sent. `positions` without an entry: the oldest tick kept of every topic. */
export type Start = "live" | "latest" | [topic: string, position: Position][];

/** A publish as it is sent. `payload`: a JSON text, or bytes. */
export interface PublishMessage {
  topic: string;
  payload: string | Uint8Array;
  key: Key;
  schema: number;
  timeNs: number;
  /** Empty: none. */
  messageId: string;
}

/** The server broke the protocol, or refused the hello: `code` says which. */
export class ProtocolError extends Error {
  constructor(
    message: string,
    readonly code = CODE_PROTOCOL,
  ) {
    super(message);
  }
}

/**
 * Takes the messages that a codec decodes, in order. Topics are names in JSON and numbers in native frames. Any method may throw a
 * {@link ProtocolError}.
 */
export interface Receiver {
  /** `knowsIds`, `knowsMoments`: truthy if the server has granted `message_ids`, `since`. */
  welcome(server: string, epoch: number, session: number, frameBytesMax: number, knowsIds: unknown, knowsMoments: unknown): void;
  /** `since`: when the subscription became live; 0: not known. */
  acknowledged(request: number, since: number): void;
  announced(topic: string, id: number, epoch: number): void;
  unsubscribed(request: number, pattern: string, code: number, text: string): void;
  tick(topic: string | number, sequence: number, fields: TickFields): void;
  skipped(kind: "gap" | "conflated", topic: string | number, from: number, to: number, count: number): void;
  recovered(topic: string, epoch: number, sequence: number, recovered: boolean, reason: NotRecovered | ""): void;
  pong(token: number): void;
  /** Only native frames have pings of the server. */
  ping(token: bigint): void;
  error(request: number, code: number, text: string): void;
  closing(code: number, reason: string, reconnectAfterMs: number): void;
  published(request: number, topic: string, epoch: number, sequence: number, duplicate: boolean): void;
  expires(request: number, seconds: number): void;
  stale(topic: string | number, stale: boolean, sinceNs: number): void;
  source(source: string, state: string, sinceNs: number): void;
}

/** Everything of a tick but its position. */
export interface TickFields {
  timeNs: number;
  ingestNs: number;
  key: Key;
  snapshot: boolean;
  schema: number;
  /** The decoded payload, or the bytes to decode later. */
  payload: unknown;
  /** Whether `payload` is a UTF-8 text of JSON that is not parsed yet. */
  isText: boolean;
}

/** Encodes requests and decodes messages. Requests are whole WebSocket messages. */
export interface Codec {
  readonly protocol: string;
  /** Bytes of the longest message that the server takes, or of the longest frame. */
  sizeMax(frameBytesMax: number): number;
  size(message: string | Uint8Array): number;
  decode(message: unknown, receiver: Receiver): void;
  hello(request: number, name: string, token: string): string | Uint8Array;
  refresh(request: number, token: string): string | Uint8Array;
  ping(token: number): string | Uint8Array;
  pong(token: bigint): string | Uint8Array;
  /** Several messages if the positions do not fit into one; none if they do not fit at all. */
  subscribe(
    request: number,
    pattern: string,
    start: Start,
    moment: Moment | undefined,
    policy: Policy | null,
    maxRate: number | null,
    sizeMax: number,
  ): (string | Uint8Array)[];
  update(request: number, pattern: string, policy: Policy | null, maxRate: number | null): string | Uint8Array;
  unsubscribe(request: number, pattern: string): string | Uint8Array;
  publish(request: number, publish: PublishMessage): string | Uint8Array;
}
