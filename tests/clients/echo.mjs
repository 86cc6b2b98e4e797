// echo.mjs URL SIZES: sends messages of many sizes and shapes one after the other, and prints for each whether the echo is
// the same to the byte: "KIND SIZE FRAGMENTS same". Then "end".
import WebSocket from "ws";

const [url, sizeList] = process.argv.slice(2);
const shapes = [];
for (const size of sizeList.split(",").map(Number))
  for (const kind of ["text", "binary"])
    for (const fragments of [1, 3]) shapes.push({ kind, size, fragments });

// Every byte value in binary; characters of one to four bytes in text, so that fragments split them.
const binary = (size) => Buffer.from(Uint8Array.from({ length: size }, (_, at) => (at * 31 + (at >> 8)) & 0xff));
const text = (size) => Buffer.from("aé漢🦀".repeat(Math.ceil(size / 10) + 1)).subarray(0, size - (size % 10));

const socket = new WebSocket(url, { maxPayload: 32 << 20 });
let at = 0;
let sent;

const next = () => {
  if (at === shapes.length) return socket.close(1000);
  const { kind, size, fragments } = shapes[at];
  sent = kind === "text" ? text(size) : binary(size);
  const step = Math.ceil(sent.length / fragments);
  for (let part = 0; part < fragments; part += 1)
    socket.send(sent.subarray(part * step, (part + 1) * step), { binary: kind === "binary", fin: part === fragments - 1 });
};

socket.on("open", next);
socket.on("message", (data, isBinary) => {
  const { kind, size, fragments } = shapes[at];
  const same = data.equals(sent) && isBinary === (kind === "binary");
  console.log(`${kind} ${size} ${fragments} ${same ? "same" : "DIFFERENT"}`);
  at += 1;
  next();
});
socket.on("close", (code) => console.log(`closed ${code}\nend`));
