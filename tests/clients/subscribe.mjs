// subscribe.mjs URL rkyv|json|raw PATTERNS COUNT [batches|plain]: prints what npm `ws` receives, for the integration tests to compare.
//
// It prints "ready" once every pattern is acknowledged (raw: once open), one line per tick (topic TAB sequence TAB base64 of the
// payload as received), "closing CODE" and "closed CODE" when the server closes, and finally "end". With a fifth argument it says
// hello, with the feature `batches` or none, and prints at its end "extensions NAMES", "messages COUNT" and "bytes COUNT": those that
// had ticks, and all that it read.
import WebSocket from "ws";
import { framesOf, ticksOfJson } from "./wire.mjs";

const [url, encoding, patternList, countText, hello] = process.argv.slice(2);
const patterns = patternList.split(",");
const count = Number(countText);
const topics = new Map();
let seen = 0;
let acknowledged = 0;
let messages = 0;
const out = [];

const flush = () => {
  if (out.length > 0) process.stdout.write(out.splice(0).join("\n") + "\n");
};

const path = encoding === "raw" ? `${url}?topics=${encodeURIComponent(patternList).replaceAll("%2C", ",")}` : url;
const socket = new WebSocket(path, [`tickcast.v1.${encoding}`]);

const tick = (topic, sequence, payload) => {
  out.push(`${topic}\t${sequence}\t${payload.toString("base64")}`);
  seen += 1;
};
const acknowledge = () => {
  acknowledged += 1;
  if (acknowledged === patterns.length) out.push("ready");
};

const onFrame = (frame) => {
  if (frame.kind === 65 && frame.topicId === 0) acknowledge();
  else if (frame.kind === 65) topics.set(frame.topicId, frame.payload.toString());
  else if (frame.kind === 67) tick(topics.get(frame.topicId), frame.sequence, frame.payload);
  else if (frame.kind === 70) out.push(`closing ${frame.record.readUInt16LE(4)}`);
  else if (frame.kind !== 64) throw new Error(`unexpected frame of kind ${frame.kind}: ${frame.payload}`);
};

const onText = (text) => {
  for (const message of ticksOfJson(text)) {
    if (message.op === undefined) tick(message.topic, message.sequence, message.payload);
    else if (message.op === "subscribed") message.body.pattern !== undefined && acknowledge();
    else if (message.op === "welcome") continue;
    else if (message.op === "closing") out.push(`closing ${message.body.code}`);
    else throw new Error(`unexpected message: ${text}`);
  }
};

socket.on("open", () => {
  if (socket.protocol !== `tickcast.v1.${encoding}`) throw new Error(`subprotocol ${socket.protocol}`);
  if (hello !== undefined && encoding === "json")
    socket.send(JSON.stringify({ op: "hello", features: hello === "batches" ? ["batches"] : [] }));
  if (hello !== undefined && encoding === "rkyv") {
    const frame = Buffer.alloc(48);
    frame.writeUInt32LE(frame.length, 0);
    frame.writeUInt16LE(0x6374, 4);
    frame.writeUInt8(1, 6);
    frame.writeUInt16LE(1, 8);
    frame.writeUInt16LE(16, 10);
    frame.writeUInt32LE(hello === "batches" ? 1 << 10 : 0, 40);
    socket.send(frame);
  }
  if (encoding === "raw") out.push("ready");
  else if (encoding === "json") socket.send(JSON.stringify({ op: "subscribe", id: 1, topics: patterns }));
  else
    for (const pattern of patterns) {
      const text = Buffer.from(pattern);
      const frame = Buffer.alloc(Math.ceil((40 + text.length) / 16) * 16);
      frame.writeUInt32LE(frame.length, 0);
      frame.writeUInt16LE(0x6374, 4);
      frame.writeUInt8(1, 6);
      frame.writeUInt16LE(2, 8);
      frame.writeUInt16LE(8, 10);
      frame.writeUInt32LE(text.length, 12);
      frame.writeUInt32LE(1, 32);
      text.copy(frame, 40);
      socket.send(frame);
    }
  flush();
});

// The socket is gone when the WebSocket has closed.
let bytesRead = 0;
socket.on("message", () => (bytesRead = socket._socket.bytesRead));

socket.on("message", (data, isBinary) => {
  const before = seen;
  if (isBinary !== (encoding !== "json")) throw new Error(`a message of the wrong type, binary: ${isBinary}`);
  if (encoding === "raw") tick("", seen + 1, data);
  else if (encoding === "rkyv") framesOf(data).forEach(onFrame);
  else onText(data.toString("utf8"));
  messages += seen > before ? 1 : 0;
  flush();
  if (count > 0 && seen >= count) socket.close(1000);
});

socket.on("close", (code) => {
  const extensions = Object.keys(socket._extensions).join(",");
  if (hello !== undefined) out.push(`extensions ${extensions}`, `messages ${messages}`, `bytes ${bytesRead}`);
  out.push(`closed ${code}`, "end");
  flush();
});
