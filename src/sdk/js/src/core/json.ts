// tickcast.v1.json: one object, or an array of objects, in each text message.

import {
  type Codec,
  FEATURES,
  type Key,
  type Moment,
  type NotRecovered,
  type Policy,
  type Position,
  ProtocolError,
  type PublishMessage,
  type Receiver,
  type Start,
} from "./protocol.js";

type Message = Record<string, unknown>;

const REASONS: NotRecovered[] = ["epoch", "too_old", "unknown_topic", "ahead"];
const encoder = new TextEncoder();

function fail(name: string): never {
  throw new ProtocolError(`the server's ${name} is malformed`);
}

function notJson(): never {
  throw new ProtocolError("the server's JSON is malformed");
}

/** A whole number that a double holds exactly; absent: the default, if there is one. */
function whole(message: Message, name: string, absent?: number): number {
  const value = message[name] ?? absent;
  if (!Number.isSafeInteger(value) || (value as number) < 0) fail(name);
  return value as number;
}

/** A time in nanoseconds, which a double rounds to 256 ns. */
function time(message: Message, name: string): number {
  const value = message[name];
  if (typeof value !== "number" || !(value >= 0)) fail(name);
  return value;
}

function typed(message: Message, name: string, type: string, absent: unknown): unknown {
  const value = message[name] ?? absent;
  if (typeof value !== type) fail(name);
  return value;
}

const text = (message: Message, name: string, absent?: string) => typed(message, name, "string", absent) as string;
const flag = (message: Message, name: string, absent?: boolean) => typed(message, name, "boolean", absent) as boolean;

function key(message: Message): Key {
  const value = message["key"] ?? 0;
  if (typeof value === "string" && /^\d{1,20}$/.test(value)) return exactKey(BigInt(value));
  if (typeof value !== "number" || !(value >= 0)) fail("key");
  return value;
}

/** A key as a number if a double holds it exactly, else as a string. */
export function exactKey(key: bigint): Key {
  return key <= Number.MAX_SAFE_INTEGER ? Number(key) : String(key);
}

function bytesOfBase64(base64: string): Uint8Array {
  let binary: string;
  try {
    binary = atob(base64);
  } catch {
    fail("data");
  }
  return Uint8Array.from(binary, (char) => char.charCodeAt(0));
}

function base64OfBytes(bytes: Uint8Array): string {
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  return btoa(binary);
}

function tick(message: Message, receiver: Receiver): void {
  const topic = text(message, "topic");
  const sequence = whole(message, "seq");
  if (!("data" in message)) fail("data");
  let payload = message["data"];
  const encoding = message["encoding"];
  if (encoding === "base64") payload = bytesOfBase64(text(message, "data"));
  else if (encoding !== undefined) fail("encoding");
  const timeNs = time(message, "ts");
  receiver.tick(topic, sequence, {
    timeNs,
    ingestNs: timeNs,
    key: key(message),
    snapshot: flag(message, "snapshot", false),
    schema: 0,
    payload,
    isText: false,
  });
}

function object(message: unknown, receiver: Receiver): void {
  if (typeof message !== "object" || message === null || Array.isArray(message)) notJson();
  take(message as Message, receiver);
}

function take(m: Message, receiver: Receiver): void {
  switch (m["op"]) {
    case undefined:
      return tick(m, receiver);
    case "welcome": {
      const features = [m["features"]].flat();
      return receiver.welcome(
        text(m, "server"),
        whole(m, "epoch"),
        whole(m, "session"),
        whole(m, "frame_bytes_max"),
        features.includes("message_ids"),
        features.includes("since"),
      );
    }
    case "subscribed": {
      if ("pattern" in m) receiver.acknowledged(whole(m, "id", 0), whole(m, "since", 0));
      const topics = m["topics"] ?? [];
      if (!Array.isArray(topics)) fail("topics");
      for (const topic of topics) {
        if (typeof topic !== "object" || topic === null) fail("topics");
        receiver.announced(text(topic, "topic"), whole(topic, "topic_id"), whole(topic, "epoch"));
      }
      return;
    }
    case "unsubscribed":
      return receiver.unsubscribed(whole(m, "id", 0), text(m, "pattern"), whole(m, "code", 0), text(m, "text", ""));
    case "gap":
    case "conflated": {
      const [from, to] = [whole(m, "from"), whole(m, "to")];
      return receiver.skipped(m["op"], text(m, "topic"), from, to, whole(m, "count", Math.max(0, to - from)));
    }
    case "recovered": {
      const recovered = flag(m, "recovered");
      const reason = REASONS.find((reason) => reason === m["reason"]) ?? "";
      return receiver.recovered(text(m, "topic"), whole(m, "epoch"), whole(m, "sequence"), recovered, reason);
    }
    case "pong":
      return receiver.pong(whole(m, "token"));
    case "error":
      return receiver.error(whole(m, "id", 0), whole(m, "code"), text(m, "text", ""));
    case "closing":
      return receiver.closing(whole(m, "code"), text(m, "reason", ""), whole(m, "reconnect_after_ms", 0));
    case "published":
      return receiver.published(
        whole(m, "id"),
        text(m, "topic"),
        whole(m, "epoch"),
        whole(m, "sequence"),
        flag(m, "duplicate", false),
      );
    case "expires":
      return receiver.expires(whole(m, "id"), whole(m, "expires_in"));
    case "stale":
      return receiver.stale(text(m, "topic"), flag(m, "stale"), time(m, "since"));
    case "source":
      return receiver.source(text(m, "source"), text(m, "state"), time(m, "since"));
    default:
      if (typeof m["op"] !== "string") fail("op");
  }
}

function options(policy: Policy | null, maxRate: number | null): Message {
  // Fields that are undefined are left out.
  return { policy: policy ?? undefined, max_rate: maxRate ?? undefined };
}

function from(start: Start, moment: Moment | undefined): unknown {
  if (start === "live") return;
  // Not as keys of an object literal: `__proto__` is a valid topic.
  return start === "latest" ? start : { positions: Object.fromEntries<Position>(start), ...moment };
}

export const JSON_CODEC: Codec = {
  protocol: "tickcast.v1.json",

  // The payload of the largest frame fits as base64.
  sizeMax: (frameBytesMax) => Math.floor((frameBytesMax * 4) / 3) + 4096,

  size: (message) => encoder.encode(message as string).length,

  decode(message, receiver) {
    if (typeof message !== "string") notJson();
    let value: unknown;
    try {
      value = JSON.parse(message);
    } catch {
      notJson();
    }
    if (!Array.isArray(value)) return object(value, receiver);
    for (const element of value) object(element, receiver);
  },

  hello(id, name, token) {
    return JSON.stringify({ op: "hello", id, name, features: FEATURES, token: token || undefined });
  },

  refresh: (id, token) => JSON.stringify({ op: "refresh", id, token }),

  ping: (token) => JSON.stringify({ op: "ping", token }),

  pong: notJson,

  subscribe(id, pattern, start, moment, policy, maxRate, sizeMax) {
    const message = { op: "subscribe", id, topics: [pattern], from: from(start, moment), ...options(policy, maxRate) };
    const encoded = JSON.stringify(message);
    // A character has at most three bytes for each of its UTF-16 units.
    return encoded.length * 3 <= sizeMax || this.size(encoded) <= sizeMax ? [encoded] : [];
  },

  update: (id, pattern, policy, maxRate) =>
    JSON.stringify({ op: "update", id, topics: [pattern], ...options(policy, maxRate) }),

  unsubscribe: (id, pattern) => JSON.stringify({ op: "unsubscribe", id, topics: [pattern] }),

  publish(id, { topic, payload, key, schema, timeNs, messageId }: PublishMessage) {
    const isText = typeof payload === "string";
    // Fields that are undefined are left out.
    const head = {
      op: "publish",
      id,
      topic,
      ts: timeNs || undefined,
      schema: schema || undefined,
      key: key || undefined,
      message_id: messageId || undefined,
      encoding: isText ? undefined : "base64",
    };
    // The payload's text goes in as it is, and last: if it were invalid, the server could not read what follows.
    return `${JSON.stringify(head).slice(0, -1)},"data":${isText ? payload : `"${base64OfBytes(payload)}"`}}`;
  },
};
