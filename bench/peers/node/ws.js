// A WebSocket server of the package `ws` that compresses for each client, as a peer of tickcast in the benchmarks.
//
// On SIGINT or SIGTERM it prints one JSON object with the ticks it published, delivered (handed to a socket) and dropped.

const { createServer } = require("node:http");

const { WebSocketServer, WebSocket } = require("ws");

const { host, port, counts, start } = require("./producers.js");

// As tickcast's `--deflate-min`. The default is 1024, which would leave these ticks plain.
const DEFLATE_BYTES_MIN = 128;
// Ticks that may wait for a client, as in the hub. Without a bound, a server that cannot keep up runs out of memory.
const CLIENT_QUEUE_TICKS = 256;

const http = createServer((_request, response) => {
  response.writeHead(400).end("this endpoint accepts only WebSocket requests\n");
});
const server = new WebSocketServer({ server: http, perMessageDeflate: { threshold: DEFLATE_BYTES_MIN } });

start(
  () => server.clients.size,
  (text) => {
    const waitingBytesMax = CLIENT_QUEUE_TICKS * text.length;
    for (const client of server.clients) {
      if (client.readyState !== WebSocket.OPEN) continue;
      if (client.bufferedAmount > waitingBytesMax) {
        counts.dropped += 1;
      } else {
        client.send(text);
        counts.delivered += 1;
      }
    }
  },
);
http.listen(port, host, () => console.log(`http=${host}:${http.address().port}`));
