// http.mjs ADDRESS: HTTP as Node speaks it, on kept connections, and WebSockets of `ws` with an origin.
import http from "node:http";
import WebSocket from "ws";

const address = process.argv[2];
const [host, port] = address.split(":");
const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });

/** Sends a request; resolves to status, body and whether its connection had carried another. */
function send(path, options = {}, write = (request) => request.end()) {
  return new Promise((resolve, reject) => {
    const request = http.request({ host, port, path, agent, ...options }, (response) => {
      let body = "";
      response.on("data", (piece) => (body += piece));
      response.on("end", () => resolve({ status: response.statusCode, body: body.trim(), isKept: request.reusedSocket }));
    });
    request.on("error", reject);
    write(request);
  });
}

/** Opens a WebSocket; resolves to "open" or the status of the refusal. */
function open(origin) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(`ws://${address}/ws`, { origin });
    socket.on("open", () => {
      socket.close();
      resolve("open");
    });
    socket.on("unexpected-response", (request, response) => {
      request.destroy();
      resolve(response.statusCode);
    });
    socket.on("error", reject);
  });
}

const first = await send("/healthz");
console.log(first.status, first.body);
const second = await send("/healthz");
console.log(second.status, second.body, second.isKept ? "on the same connection" : "on another connection");
const body = await send("/healthz", { headers: { "Content-Length": 4 } }, (request) => request.end("body"));
console.log(body.isKept ? body.status : "on another connection", "after a body");
const chunks = await send("/healthz", {}, (request) => {
  request.setHeader("Transfer-Encoding", "chunked");
  request.write("one");
  request.end("two");
});
console.log(chunks.isKept ? chunks.status : "on another connection", "after chunks");
console.log((await send("/healthz", { method: "DELETE" })).status);
console.log((await send("/nothing")).status);
const waits = { headers: { Expect: "100-continue", "Content-Length": 4 } };
let wasAsked = "not asked";
const asked = await send("/healthz", waits, (request) => {
  request.on("continue", () => {
    wasAsked = "100";
    request.end("body");
  });
  request.flushHeaders();
});
console.log(wasAsked, "then", asked.status);

// A connection that has carried requests becomes a WebSocket.
await new Promise((resolve, reject) => {
  const headers = {
    Connection: "keep-alive, Upgrade",
    Upgrade: "websocket",
    "Sec-WebSocket-Version": 13,
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
  };
  const request = http.request({ host, port, path: "/ws", agent, headers });
  request.on("upgrade", (response, socket) => {
    console.log(request.reusedSocket ? "upgraded" : "upgraded another connection");
    socket.destroy();
    resolve();
  });
  request.on("error", reject);
  request.end();
});
console.log("own origin:", await open(`http://${address}`));
console.log("foreign origin:", await open("https://evil.example"));
console.log("end");
agent.destroy();
