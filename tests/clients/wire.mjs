// The wire format of PROTOCOL.md, by offsets and by text.

/** The frames of a binary message. */
export function framesOf(data) {
  const frames = [];
  let at = 0;
  while (at < data.length) {
    const length = data.readUInt32LE(at);
    const stride = data.readUInt16LE(at + 10);
    const payloadLength = data.readUInt32LE(at + 12);
    if (data.readUInt16LE(at + 4) !== 0x6374 || data.readUInt8(at + 6) !== 1) throw new Error("magic or version");
    if (length !== Math.ceil((32 + stride + payloadLength) / 16) * 16) throw new Error("frame_len");
    if (at + length > data.length) throw new Error("a frame extends past its message");
    frames.push({
      kind: data.readUInt16LE(at + 8),
      sequence: data.readBigUInt64LE(at + 16),
      topicId: data.readUInt32LE(at + 24),
      record: data.subarray(at + 32, at + 32 + stride),
      payload: data.subarray(at + 32 + stride, at + 32 + stride + payloadLength),
    });
    at += length;
  }
  return frames;
}

/** The texts of a message's objects, unparsed: the message itself, or the elements of an array. */
function objectsOf(text) {
  if (!text.startsWith("[")) return [text];
  const objects = [];
  let depth = 0;
  let start = 0;
  for (let at = 0; at < text.length; at += 1) {
    const char = text[at];
    if (char === '"') {
      for (at += 1; text[at] !== '"'; at += 1) if (text[at] === "\\") at += 1;
    } else if (char === "{" || char === "[") {
      if (depth === 1 && char === "{") start = at;
      depth += 1;
    } else if (char === "}" || char === "]") {
      depth -= 1;
      if (depth === 1 && char === "}") objects.push(text.slice(start, at + 1));
    }
  }
  return objects;
}

const TICK = /^\{"topic":("(?:[^"\\]|\\.)*"),"seq":(\d+),"ts":\d+(,"encoding":"base64")?,"data":/;

/** The messages in a text: ticks with their payload's bytes as received, others parsed. */
export function ticksOfJson(text) {
  return objectsOf(text).map((object) => {
    const head = TICK.exec(object);
    if (head === null) {
      const body = JSON.parse(object);
      return { op: body.op, body };
    }
    const data = object.slice(head[0].length, -1);
    const payload = head[3] === undefined ? Buffer.from(data, "utf8") : Buffer.from(JSON.parse(data), "base64");
    return { topic: JSON.parse(head[1]), sequence: head[2], payload };
  });
}
