// Authentication over the stock socket.io-client: socketio-auth.mjs HOST:PORT TOKEN TRANSPORTS, where the token permits `alice.>`.
import assert from "node:assert/strict";
import { once } from "node:events";
import { io } from "socket.io-client";

const [address, token, transports] = process.argv.slice(2);
const open = (more) => io(`http://${address}`, { transports: transports.split(","), forceNew: true, ...more });
const ask = (socket, ...event) => socket.timeout(60_000).emitWithAck(...event);

// Without a token, or with one that is not valid, the client learns why and does not come back.
for (const auth of [undefined, { user: 1 }, { token: "nonsense" }, { token: 7 }]) {
  const socket = open({ auth, reconnectionDelay: 10 });
  const [error] = await once(socket, "connect_error");
  assert.equal(error.data.code, auth?.token === 7 ? 3501 : 3500, error.message);
  await new Promise((resolve) => setTimeout(resolve, 100));
  assert.ok(!socket.active, "it does not reconnect");
}

for (const more of [{ auth: { token } }, { auth: (give) => give({ token }) }, { extraHeaders: { Authorization: `Bearer ${token}` } }]) {
  const socket = open(more);
  socket.on("connect_error", (error) => assert.fail(error));
  await once(socket, "connect");
  assert.equal((await ask(socket, "subscribe", "alice.x")).op, "subscribed");
  assert.equal((await ask(socket, "subscribe", "bob.x")).code, 108);
  assert.equal((await ask(socket, "publish", "bob.x", 1)).code, 108);
  const tick = once(socket, "tick");
  assert.equal((await ask(socket, "publish", "alice.x", 1)).op, "published");
  assert.equal((await tick)[0].data, 1);
  assert.equal((await ask(socket, "refresh", token)).op, "expires");
  if (more.extraHeaders) {
    const gone = once(socket, "disconnect");
    socket.emit("refresh", "nonsense");
    assert.equal((await gone)[0], "io server disconnect");
    assert.ok(!socket.active, "it does not reconnect");
  }
  socket.disconnect();
}
console.log("end");
