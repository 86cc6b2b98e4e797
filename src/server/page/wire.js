// wire.js: encodes and decodes tickcast.v1.rkyv: native frames in binary WebSocket messages, as PROTOCOL.md describes them.
// A frame is little-endian: a header of 32 bytes, a fixed-size record, the payload, and zero padding to a multiple of 16.

export const SUBPROTOCOL = "tickcast.v1.rkyv";

export const KIND = {
  hello: 1,
  subscribe: 2,
  unsubscribe: 3,
  ping: 5,
  update: 6,
  welcome: 64,
  subscribed: 65,
  unsubscribed: 66,
  tick: 67,
  pong: 68,
  error: 69,
  closing: 70,
  conflated: 71,
  gap: 72,
  recovered: 73,
};

/** Bits of a frame's flags. */
export const FLAG_JSON = 1;
export const FLAG_SNAPSHOT = 2;

/** Start positions of a subscription. */
export const FROM = { live: 0, latest: 1, place: 2 };
/** Slow-consumer policies. */
export const POLICY = { conflate: 1, drop: 2 };

/** Features that the page asks for: `batches`, several frames in one message. */
const FEATURES = 1 << 10;
const HEADER_BYTES = 32;
const MAGIC = 0x6374;
const VERSION = 1;
const TWO_32 = 2 ** 32;
const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** The server sent bytes that violate PROTOCOL.md. */
export class LayoutError extends Error {}

/** A decoded frame. It is reused: the next frame overwrites it. */
class Frame {
  kind = 0;
  flags = 0;
  sequence = 0;
  topicId = 0;
  /** Offsets within the message. */
  record = 0;
  payload = 0;
  payloadBytes = 0;
  view = null;

  u16(offset) {
    return this.view.getUint16(this.#field(offset, 2), true);
  }

  u32(offset) {
    return this.view.getUint32(this.#field(offset, 4), true);
  }

  /** Exact up to 2^53, which covers sequences. Times in nanoseconds are rounded to 256 ns. */
  u64(offset) {
    return u64(this.view, this.#field(offset, 8));
  }

  /** Exact, for values that are sent back to the server. */
  big(offset) {
    return this.view.getBigUint64(this.#field(offset, 8), true);
  }

  /** Offset of a record field within the message. Throws a LayoutError if the field lies outside the record. */
  #field(offset, bytes) {
    const at = this.record + offset;
    if (at + bytes > this.payload) throw new LayoutError(`record of kind ${this.kind} is too short`);
    return at;
  }

  text() {
    return decoder.decode(this.bytes());
  }

  bytes() {
    return new Uint8Array(this.view.buffer, this.payload, this.payloadBytes);
  }

  /** The payload as Float32 samples, without a copy if it is aligned. */
  floats() {
    const count = this.payloadBytes >> 2;
    if (this.payload % 4 === 0) return new Float32Array(this.view.buffer, this.payload, count);
    return new Float32Array(this.view.buffer.slice(this.payload, this.payload + 4 * count));
  }
}

const frame = new Frame();

function u64(view, at) {
  return view.getUint32(at, true) + TWO_32 * view.getUint32(at + 4, true);
}

/** Calls `take` with each frame of a message. Throws a LayoutError if the message is malformed. */
export function readFrames(buffer, take) {
  if (!(buffer instanceof ArrayBuffer)) throw new LayoutError("text message");
  const view = new DataView(buffer);
  let at = 0;
  while (at < buffer.byteLength) {
    if (buffer.byteLength - at < HEADER_BYTES) throw new LayoutError("truncated frame header");
    const length = view.getUint32(at, true);
    const stride = view.getUint16(at + 10, true);
    const payloadBytes = view.getUint32(at + 12, true);
    if (view.getUint16(at + 4, true) !== MAGIC || view.getUint8(at + 6) !== VERSION) {
      throw new LayoutError("unknown magic number or version");
    }
    if (length !== aligned(HEADER_BYTES + stride + payloadBytes) || at + length > buffer.byteLength) {
      throw new LayoutError("inconsistent frame lengths");
    }
    frame.view = view;
    frame.kind = view.getUint16(at + 8, true);
    frame.flags = view.getUint8(at + 7);
    frame.sequence = u64(view, at + 16);
    frame.topicId = view.getUint32(at + 24, true);
    frame.record = at + HEADER_BYTES;
    frame.payload = frame.record + stride;
    frame.payloadBytes = payloadBytes;
    take(frame);
    at += length;
  }
}

function aligned(bytes) {
  return (bytes + 15) & ~15;
}

/** Encodes a frame with a record of `stride` bytes, filled by `write`, and a text payload. */
function encode(kind, stride, write, text = "") {
  const payload = encoder.encode(text);
  const bytes = new Uint8Array(aligned(HEADER_BYTES + stride + payload.length));
  const view = new DataView(bytes.buffer);
  view.setUint32(0, bytes.length, true);
  view.setUint16(4, MAGIC, true);
  view.setUint8(6, VERSION);
  view.setUint16(8, kind, true);
  view.setUint16(10, stride, true);
  view.setUint32(12, payload.length, true);
  write(new DataView(bytes.buffer, HEADER_BYTES, stride));
  bytes.set(payload, HEADER_BYTES + stride);
  return bytes;
}

export function hello(name) {
  return encode(KIND.hello, 16, (record) => record.setUint32(8, FEATURES, true), name);
}

export function ping(token) {
  return encode(KIND.ping, 8, (record) => record.setUint32(0, token, true));
}

/** The response to a ping frame, with the same token. */
export function pong(token) {
  return encode(KIND.pong, 8, (record) => record.setBigUint64(0, token, true));
}

/**
 * `options.place` is `{epoch, sequence}` of the last tick received; `options.rate` is the maximum number of ticks per second
 * and topic, 0 for no limit.
 */
export function subscribe(request, pattern, options) {
  return encodeSubscribe(KIND.subscribe, request, pattern, options);
}

/** Changes the policy and rate of a subscription. */
export function update(request, pattern, { policy, rate }) {
  return encodeSubscribe(KIND.update, request, pattern, { policy, rate });
}

function encodeSubscribe(kind, request, pattern, { from = FROM.live, policy = 0, rate = 0, place = null }) {
  const write = (record) => {
    record.setUint32(0, request, true);
    record.setUint8(4, place === null ? from : FROM.place);
    record.setUint8(5, policy);
    if (place !== null) {
      record.setBigUint64(8, place.epoch, true);
      record.setBigUint64(16, BigInt(place.sequence), true);
    }
    record.setUint32(24, Math.round(rate * 1000), true);
  };
  return encode(kind, 32, write, pattern);
}

export function unsubscribe(request, pattern) {
  return encode(KIND.unsubscribe, 8, (record) => record.setUint32(0, request, true), pattern);
}

/** Whether a pattern matches a topic. `*` matches one token; `>` at the end matches one or more. */
export function matches(pattern, topic) {
  const expected = pattern.split(".");
  const tokens = topic.split(".");
  for (let at = 0; at < expected.length; at += 1) {
    if (expected[at] === ">" && at === expected.length - 1) return tokens.length > at;
    if (at >= tokens.length || (expected[at] !== "*" && expected[at] !== tokens[at])) return false;
  }
  return expected.length === tokens.length;
}
