"""slow.py URL PATTERN COUNT EVERY: a conflating reader that takes one message while another client gets EVERY ticks.

Prints for the slow client one line per tick (topic TAB sequence TAB base64 of the payload) and per announced range (the word
conflated TAB topic TAB from TAB to), then "remaining N", the number of ticks it still got once the other had all COUNT, and
finally "end". The slow client's receive buffer is as small as the kernel allows, and the library buffers one message.
"""

import base64
import json
import socket
import sys
from urllib.parse import urlsplit

from websockets.sync.client import connect

import wire

url, pattern, count, every = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
protocol = ["tickcast.v1.json"]


def line(*words):
    print(*words, sep="\t", flush=True)


def subscribe(client, **options):
    client.send(json.dumps({"op": "subscribe", "topics": [pattern], **options}))
    assert json.loads(client.recv())["pattern"] == pattern


def ticks(client):
    """The ticks of the next message. Prints its other objects."""
    for text in wire.objects(client.recv()):
        if (parts := wire.tick(text)) is not None:
            yield parts
            continue
        body = json.loads(text)
        if body["op"] == "conflated":
            line("conflated", body["topic"], body["from"], body["to"])
        else:
            assert body["op"] == "subscribed", text


def take_slowly():
    """Reads messages up to one with a tick."""
    while not (found := list(ticks(slow))):
        pass
    for topic, sequence, payload in found:
        has[topic] = sequence
        line(topic, sequence, base64.b64encode(payload).decode())
    return len(found)


address = urlsplit(url)
small = socket.socket()
small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
small.connect((address.hostname, address.port))
last, has, seen, remaining = {}, {}, 0, 0
with (
    connect(url, open_timeout=60, sock=small, subprotocols=protocol, max_size=None, max_queue=1) as slow,
    connect(url, open_timeout=60, subprotocols=protocol, max_size=None) as healthy,
):
    subscribe(slow, policy="conflate")
    subscribe(healthy)
    line("ready")
    while seen < count:
        for topic, sequence, _ in ticks(healthy):
            last[topic] = sequence
            seen += 1
            if seen % every == 0:
                take_slowly()
    while has != last:
        remaining += take_slowly()
line(f"remaining {remaining}")
line("end")
