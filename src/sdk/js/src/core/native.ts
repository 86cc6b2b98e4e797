// tickcast.v1.rkyv: native frames in binary messages. A frame is little-endian: a header of 32 bytes, a record, a payload, and zero
// bytes up to a multiple of 16. PROTOCOL.md, "Native frames".

import { exactKey } from "./json.js";
import * as layout from "./layout.js";
import {
  type Codec,
  FEATURE_BITS,
  FRAMES_MESSAGE_BYTES_MAX,
  type Key,
  MESSAGE_IDS_BIT,
  type Moment,
  type NotRecovered,
  type Policy,
  ProtocolError,
  type Receiver,
  SINCE_BIT,
} from "./protocol.js";

const POLICIES: (Policy | null)[] = [null, "conflate", "drop", "disconnect", "keep"];
const FROM = { live: 0, latest: 1, positions: 3 };
const REASONS: (NotRecovered | "")[] = ["", "epoch", "too_old", "unknown_topic", "ahead"];
const STATES = ["", "up", "fallback", "down"];

const encoder = new TextEncoder();
const decoder = new TextDecoder();

const aligned = (bytes: number) => (bytes + 15) & ~15;

/** Rejects a frame: its header (kind 0), or a record that is too short or of a kind that servers do not send. */
function fail(kind = 0): never {
  throw new ProtocolError(`the server's frame ${kind} is malformed`);
}

/** Exact up to 2^53, which covers epochs and sequences. Times in nanoseconds are rounded to 256 ns. */
function u64(view: DataView, at: number): number {
  return view.getUint32(at, true) + layout.TWO_32 * view.getUint32(at + 4, true);
}

function keyAt(view: DataView, at: number): Key {
  const key = u64(view, at);
  return Number.isSafeInteger(key) ? key : exactKey(view.getBigUint64(at, true));
}

/** The record and payload of one frame. */
class Body {
  constructor(
    readonly view: DataView,
    readonly kind: number,
    readonly record: number,
    readonly payload: number,
    readonly payloadBytes: number,
  ) {}

  /** Offset of a field. Fields that a later version appended may be absent: ask {@link has}. */
  at(offset: number, bytes: number): number {
    if (!this.has(offset + bytes)) fail(this.kind);
    return this.record + offset;
  }

  has(bytes: number): boolean {
    return this.record + bytes <= this.payload;
  }

  u16(offset: number): number {
    return this.view.getUint16(this.at(offset, 2), true);
  }

  u32(offset: number): number {
    return this.view.getUint32(this.at(offset, 4), true);
  }

  u64(offset: number): number {
    return u64(this.view, this.at(offset, 8));
  }

  text(): string {
    return decoder.decode(new Uint8Array(this.view.buffer, this.view.byteOffset + this.payload, this.payloadBytes));
  }
}

function tick(view: DataView, at: number, stride: number, payloadBytes: number, receiver: Receiver): void {
  if (stride < layout.TICK_RECORD_BYTES) fail(layout.TICK);
  const record = at + layout.HEADER_BYTES;
  const flags = view.getUint8(at + 7);
  receiver.tick(view.getUint32(at + 24, true), u64(view, at + 16), {
    timeNs: u64(view, record),
    ingestNs: u64(view, record + 8),
    key: stride >= layout.TICK_RECORD_BYTES + 8 ? keyAt(view, record + layout.TICK_RECORD_BYTES) : 0,
    snapshot: (flags & layout.FLAG_SNAPSHOT) !== 0,
    schema: view.getUint32(at + 28, true),
    payload: new Uint8Array(view.buffer, view.byteOffset + record + stride, payloadBytes),
    isText: (flags & layout.FLAG_JSON) !== 0,
  });
}

function take(body: Body, topicId: number, sequence: number, receiver: Receiver): void {
  switch (body.kind) {
    case layout.WELCOME: {
      const features = body.has(28) ? body.u32(24) : 0;
      return receiver.welcome(
        body.text(), body.u64(0), body.u64(8), body.u32(16), features & MESSAGE_IDS_BIT, features & SINCE_BIT,
      );
    }
    case layout.SUBSCRIBED:
      if (topicId === 0) return receiver.acknowledged(body.u32(8), body.has(24) ? body.u64(16) : 0);
      return receiver.announced(body.text(), topicId, body.u64(0));
    case layout.UNSUBSCRIBED:
      return receiver.unsubscribed(body.u32(0), body.text(), body.has(6) ? body.u16(4) : 0, "");
    case layout.PONG:
      return receiver.pong(body.u64(0));
    case layout.PING:
      return receiver.ping(body.view.getBigUint64(body.at(0, 8), true));
    case layout.ERROR:
      return receiver.error(body.u32(0), body.u16(4), body.text());
    case layout.CLOSING:
      return receiver.closing(body.u16(4), body.text(), body.u32(0));
    case layout.CONFLATED:
    case layout.GAP: {
      const [from, to] = [body.u64(0), body.u64(8)];
      const count = body.has(24) ? body.u64(16) : to - from;
      return receiver.skipped(body.kind === layout.GAP ? "gap" : "conflated", topicId, from, to, count);
    }
    case layout.RECOVERED: {
      const reason = body.has(22) ? (REASONS[body.u16(20)] ?? "") : "";
      return receiver.recovered(body.text(), body.u64(0), body.u64(8), body.u32(16) !== 0, reason);
    }
    case layout.PUBLISHED:
      return receiver.published(body.u32(8), body.text(), body.u64(0), sequence, body.u32(12) !== 0);
    case layout.EXPIRES:
      return receiver.expires(body.u32(0), body.u32(4));
    case layout.SOURCE:
      return receiver.source(body.text(), STATES[body.u32(8)] ?? "", body.u64(0));
    case layout.STALE:
      return receiver.stale(topicId, body.u32(8) !== 0, body.u64(0));
    default:
      if (body.kind < layout.WELCOME || body.kind > layout.SERVER_KIND_MAX) fail(body.kind);
  }
}

/** Decodes one frame at an offset and returns the offset of the next. */
function frame(view: DataView, at: number, receiver: Receiver): number {
  const left = view.byteLength - at;
  if (left < layout.HEADER_BYTES) fail();
  const length = view.getUint32(at, true);
  const kind = view.getUint16(at + 8, true);
  const stride = view.getUint16(at + 10, true);
  const payloadBytes = view.getUint32(at + 12, true);
  if (view.getUint16(at + 4, true) !== layout.MAGIC || view.getUint8(at + 6) !== layout.VERSION) fail();
  // Before the sum is rounded, because that is done with 32 bits.
  if (length > left || stride + payloadBytes > left || length !== aligned(layout.HEADER_BYTES + stride + payloadBytes)) fail();
  if (kind === layout.TICK) {
    tick(view, at, stride, payloadBytes, receiver);
  } else {
    const record = at + layout.HEADER_BYTES;
    const body = new Body(view, kind, record, record + stride, payloadBytes);
    take(body, view.getUint32(at + 24, true), u64(view, at + 16), receiver);
  }
  return at + length;
}

/** Encodes one frame with a record of `stride` bytes, filled by `write`. */
function encode(
  kind: number,
  stride: number,
  write: (record: DataView) => void,
  parts: (string | Uint8Array)[] = [],
  schema = 0,
): Uint8Array {
  const payload = parts.map((part) => (typeof part === "string" ? encoder.encode(part) : part));
  const payloadBytes = payload.reduce((sum, part) => sum + part.length, 0);
  const bytes = new Uint8Array(aligned(layout.HEADER_BYTES + stride + payloadBytes));
  const view = new DataView(bytes.buffer);
  view.setUint32(0, bytes.length, true);
  view.setUint16(4, layout.MAGIC, true);
  view.setUint8(6, layout.VERSION);
  view.setUint16(8, kind, true);
  view.setUint16(10, stride, true);
  view.setUint32(12, payloadBytes, true);
  view.setUint32(28, schema, true);
  write(new DataView(bytes.buffer, layout.HEADER_BYTES, stride));
  let at = layout.HEADER_BYTES + stride;
  for (const part of payload) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

const pair = (epoch: number, sequence: number, at: number) => (record: DataView) => {
  record.setBigUint64(at, BigInt(epoch), true);
  record.setBigUint64(at + 8, BigInt(sequence), true);
};

const u32At0 = (value: number) => (record: DataView) => record.setUint32(0, value, true);

function subscription(
  kind: number,
  request: number,
  pattern: string,
  from: number,
  policy: Policy | null,
  maxRate: number | null,
  moment?: Moment,
): Uint8Array {
  const write = (record: DataView) => {
    pair(moment?.epoch ?? 0, moment?.since ?? 0, 8)(record);
    record.setUint32(0, request, true);
    record.setUint8(4, from);
    record.setUint8(5, POLICIES.indexOf(policy));
    record.setUint32(24, Math.round((maxRate ?? 0) * 1000), true);
  };
  return encode(kind, 32, write, [pattern]);
}

/** Joins frames into messages of at most {@link FRAMES_MESSAGE_BYTES_MAX}, unless a single frame is longer. */
function messages(frames: Uint8Array[]): Uint8Array[] {
  const joined: Uint8Array[] = [];
  let [start, bytes] = [0, 0];
  const join = (end: number) => {
    const message = new Uint8Array(bytes);
    let at = 0;
    for (const frame of frames.slice(start, end)) {
      message.set(frame, at);
      at += frame.length;
    }
    joined.push(message);
    [start, bytes] = [end, 0];
  };
  frames.forEach((frame, index) => {
    if (index > start && bytes + frame.length > FRAMES_MESSAGE_BYTES_MAX) join(index);
    bytes += frame.length;
  });
  join(frames.length);
  return joined;
}

export const NATIVE_CODEC: Codec = {
  protocol: "tickcast.v1.rkyv",

  sizeMax: (frameBytesMax) => frameBytesMax,

  size: (message) => message.length,

  decode(message, receiver) {
    if (!(message instanceof ArrayBuffer)) fail();
    const view = new DataView(message);
    for (let at = 0; at < message.byteLength; ) at = frame(view, at, receiver);
  },

  hello(request, name, token) {
    const bytes = encoder.encode(token);
    const write = (record: DataView) => {
      record.setUint32(0, request, true);
      record.setUint16(6, bytes.length, true);
      record.setUint32(8, FEATURE_BITS, true);
    };
    return encode(layout.HELLO, 16, write, [name, bytes]);
  },

  refresh: (request, token) => encode(layout.REFRESH, 8, u32At0(request), [token]),

  ping: (token) => encode(layout.PING, 8, u32At0(token)),

  pong: (token) => encode(layout.PONG, 8, (record) => record.setBigUint64(0, token, true)),

  subscribe(request, pattern, start, moment, policy, maxRate) {
    if (typeof start === "string") return [subscription(layout.SUBSCRIBE, request, pattern, FROM[start], policy, maxRate)];
    const frames = start.map(([topic, { epoch, sequence }]) => encode(layout.RESUME, 16, pair(epoch, sequence, 0), [topic]));
    return messages([...frames, subscription(layout.SUBSCRIBE, request, pattern, FROM.positions, policy, maxRate, moment)]);
  },

  update: (request, pattern, policy, maxRate) => subscription(layout.UPDATE, request, pattern, 0, policy, maxRate),

  unsubscribe: (request, pattern) => encode(layout.UNSUBSCRIBE, 8, u32At0(request), [pattern]),

  publish(request, { topic, payload, key, schema, timeNs, messageId }) {
    const [name, id] = [encoder.encode(topic), encoder.encode(messageId)];
    const write = (record: DataView) => {
      record.setBigUint64(0, BigInt(timeNs), true);
      record.setUint32(16, request, true);
      record.setUint16(20, name.length, true);
      record.setUint16(22, id.length, true);
      record.setBigUint64(24, BigInt(key), true);
    };
    return encode(layout.PUBLISH, 32, write, [name, id, payload], schema);
  },
};
