"""python-socketio: socket_io_python.py HOST:PORT TRANSPORTS. Prints "end" after the last check."""

import queue
import sys

import socketio

ADDRESS, TRANSPORTS = sys.argv[1], sys.argv[2].split(",")
events: queue.Queue = queue.Queue()


def connect(**more) -> socketio.Client:
    client = socketio.Client(reconnection=False)
    for name in ["tick", "subscribed", "failed", "closing"]:
        client.on(name, lambda data, name=name: events.put((name, data)))
    client.connect(f"http://{ADDRESS}", transports=TRANSPORTS, wait_timeout=60, **more)
    return client


def next_tick() -> dict:
    while True:
        name, data = events.get(timeout=60)
        if name == "tick":
            return data


client = connect()
assert client.transport() == ("polling" if TRANSPORTS == ["polling"] else "websocket")
answer = client.call("subscribe", "room.*")
assert answer == {"op": "subscribed", "id": answer["id"], "pattern": "room.*", "topics": []}, answer
answer = client.call("publish", ("room.a", {"price": 1.5}, {"key": 7}))
assert answer["op"] == "published", answer
tick = next_tick()
assert (tick["topic"], tick["seq"]) == ("room.a", answer["sequence"]), tick
assert (tick["key"], tick["data"]) == (7, {"price": 1.5}), tick
for length in [0, 1, 40_000 if TRANSPORTS == ["polling"] else 100_000]:
    assert client.call("publish", ("room.b", b"\xfe" * length))["op"] == "published"
    assert next_tick()["data"] == b"\xfe" * length
assert client.call("subscribe", "a..b")["code"] == 102
assert client.call("unsubscribe", "room.*")["op"] == "unsubscribed"
client.disconnect()

try:
    connect(namespaces=["/chat"])
    raise AssertionError("there is no such namespace")
except socketio.exceptions.ConnectionError:
    pass
print("end")
