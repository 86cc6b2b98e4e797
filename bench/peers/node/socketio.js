// A Socket.IO server with its defaults, as a peer of tickcast in the benchmarks.
//
// Clients join a room by the event `subscribe`, and each tick is an event to the room. The server encodes it once for all, and queues
// without a bound what a client does not take.
//
// On SIGINT or SIGTERM it prints one JSON object with the ticks it published.

const { createServer } = require("node:http");

const { Server } = require("socket.io");

const { host, port, start } = require("./producers.js");

const ROOM = "ticks";

const http = createServer((_request, response) => {
  response.writeHead(400).end("this endpoint accepts only Socket.IO\n");
});
const io = new Server(http, { transports: ["websocket"], serveClient: false });

let clients = 0;
io.on("connection", (socket) => {
  socket.on("subscribe", (_pattern, done) => {
    socket.join(ROOM);
    clients += 1;
    socket.on("disconnect", () => {
      clients -= 1;
    });
    if (typeof done === "function") done();
  });
});

start(
  () => clients,
  // An application emits objects.
  (text) => io.to(ROOM).emit("tick", JSON.parse(text)),
);
http.listen(port, host, () => console.log(`http=${host}:${http.address().port}`));
