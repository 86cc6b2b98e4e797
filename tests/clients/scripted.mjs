// scripted.mjs: a server that does to the page exactly what a test says. It serves the files of src/server/page/ and speaks
// `tickcast.v1.rkyv`, encoded by the offsets of PROTOCOL.md.
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { WebSocketServer } from "ws";
import { GUARD_MS, check } from "./browser.mjs";
import { framesOf } from "./wire.mjs";

const HELLO = 1;
const SUBSCRIBE = 2;
const UNSUBSCRIBE = 3;
const PING = 5;
const UPDATE = 6;
/** A kind that PROTOCOL.md does not have: it marks the end of a message for `isHeard`. */
const MARK = 200;
const TYPES = { html: "text/html", css: "text/css", js: "text/javascript", svg: "image/svg+xml" };
const FILES = new URL("../../src/server/page/", import.meta.url);

function frame(kind, { record = [], payload = "", sequence = 0, topicId = 0, flags = 0 }) {
  const body = Buffer.isBuffer(payload) ? payload : Buffer.from(payload);
  const stride = record.reduce((sum, [bytes]) => sum + bytes, 0);
  const bytes = Buffer.alloc(Math.ceil((32 + stride + body.length) / 16) * 16);
  bytes.writeUInt32LE(bytes.length, 0);
  bytes.writeUInt16LE(0x6374, 4);
  bytes.writeUInt8(1, 6);
  bytes.writeUInt8(flags, 7);
  bytes.writeUInt16LE(kind, 8);
  bytes.writeUInt16LE(stride, 10);
  bytes.writeUInt32LE(body.length, 12);
  bytes.writeBigUInt64LE(BigInt(sequence), 16);
  bytes.writeUInt32LE(topicId, 24);
  let at = 32;
  for (const [size, value] of record) {
    if (size === 8) bytes.writeBigUInt64LE(BigInt(value), at);
    else if (size === 4) bytes.writeUInt32LE(value, at);
    else bytes.writeUInt16LE(value, at);
    at += size;
  }
  body.copy(bytes, at);
  return bytes;
}

export const announced = (topicId, name, epoch) =>
  frame(65, { topicId, payload: name, record: [[8, epoch], [4, 0], [4, 0]] });
export const tick = (topicId, sequence, payload, timeNs, { receiptNs = timeNs, isSnapshot = false } = {}) => {
  const flags = (typeof payload === "string" ? 1 : 0) | (isSnapshot ? 2 : 0);
  return frame(67, { topicId, sequence, payload, flags, record: [[8, timeNs], [8, receiptNs]] });
};
export const conflated = (topicId, from, to) => frame(71, { topicId, record: [[8, from], [8, to]] });
/** The answer to a failed request. */
export const failure = (request, code, text) => frame(69, { payload: text, record: [[4, request], [2, code], [2, 0]] });
export const gap = (topicId, from, to) => frame(72, { topicId, record: [[8, from], [8, to]] });
const closing = (code, reason, afterMs) =>
  frame(70, { payload: reason, record: [[4, afterMs], [2, code], [2, 0]] });

/** Listens on a free loopback port. */
export async function serve() {
  const http = createServer(async (request, response) => {
    const { pathname } = new URL(request.url, "http://localhost");
    const name = pathname === "/" ? "index.html" : pathname.replace(/^\/page\//, "");
    try {
      const bytes = await readFile(new URL(name, FILES));
      response.writeHead(200, { "Content-Type": TYPES[name.split(".").at(-1)] }).end(bytes);
    } catch {
      response.writeHead(404).end();
    }
  });
  const script = new Script(http);
  await new Promise((done) => http.listen(0, "127.0.0.1", done));
  script.url = `http://127.0.0.1:${http.address().port}/`;
  return script;
}

async function until(holds, what) {
  const end = Date.now() + GUARD_MS;
  while (!holds()) {
    check(Date.now() < end, `waited in vain: ${what}`);
    await new Promise((done) => setTimeout(done, 10));
  }
}

class Script {
  url = "";
  /** Number of connections so far. */
  connections = 0;
  /** Subscribed patterns of the current connection, with their rates in millihertz; 0: unlimited. */
  asked = new Map();
  /** Number of connections whose HELLO is not answered. */
  mute = 0;
  epoch = 7n;
  #http;
  #sockets;
  #socket = null;
  #marks = 0;

  constructor(http) {
    this.#http = http;
    this.#sockets = new WebSocketServer({ server: http, path: "/ws", handleProtocols: () => "tickcast.v1.rkyv" });
    this.#sockets.on("connection", (socket) => this.#connected(socket));
  }

  #connected(socket) {
    this.connections += 1;
    this.#socket = socket;
    this.asked = new Map();
    socket.on("message", (data) => {
      for (const { kind, record, payload } of framesOf(data)) {
        if (kind === HELLO && this.connections > this.mute) {
          const welcome = [[8, this.epoch], [8, this.connections], [4, 262_144], [4, 0]];
          socket.send(frame(64, { payload: "scripted/1", record: welcome }));
        } else if (kind === SUBSCRIBE || kind === UPDATE) {
          this.asked.set(payload.toString(), record.readUInt32LE(24));
          socket.send(frame(65, { payload, record: [[8, this.epoch], [4, record.readUInt32LE(0)], [4, 0]] }));
        } else if (kind === UNSUBSCRIBE) {
          this.asked.delete(payload.toString());
          socket.send(frame(66, { payload, record: [[4, record.readUInt32LE(0)], [4, 0]] }));
        } else if (kind === PING) {
          socket.send(frame(68, { record: [[8, record.readBigUInt64LE(0)]] }));
        }
      }
    });
  }

  /** Waits for the n-th connection. */
  isConnected(connection) {
    return until(() => this.connections >= connection, `connection ${connection}`);
  }

  /** Waits until the n-th connection has subscribed to a pattern. */
  isAsked(connection, pattern) {
    const holds = () => this.connections >= connection && this.asked.has(pattern);
    return until(holds, `connection ${connection} asks for ${pattern}`);
  }

  /** Waits until the connection has unsubscribed from everything. */
  isAskedForNothing() {
    return until(() => this.asked.size === 0, "nothing is asked for");
  }

  /** Sends frames as one message. */
  send(...frames) {
    this.#marks += 1;
    this.#socket.send(Buffer.concat([...frames, frame(MARK, { sequence: this.#marks })]));
  }

  /** Waits until a tab with a controlled clock has processed everything that was sent. */
  isHeard(tab) {
    return tab.until((marks) => window.marksHeard === marks, this.#marks);
  }

  /** Waits until the connection subscribes to a pattern at a rate. */
  isPaced(pattern, rate) {
    return until(() => this.asked.get(pattern) === rate, `${pattern} is asked for at ${rate}`);
  }

  /** Closes as PROTOCOL.md says: CLOSING, then the close frame. */
  close(code, reason, afterMs) {
    this.#socket.send(closing(code, reason, afterMs));
    this.#socket.close(code === 3001 ? 1001 : code, reason);
  }

  end() {
    this.#sockets.clients.forEach((socket) => socket.terminate());
    this.#sockets.close();
    this.#http.close();
  }
}
