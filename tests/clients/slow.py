"""slow.py URL PATTERN COUNT EVERY: a conflating reader that takes one message while another client gets EVERY ticks.

Prints, of the slow one, a line a tick (topic TAB sequence TAB base64 of the payload) and a line a notice (the word
conflated TAB topic TAB from TAB to), "remaining N" before the ticks that it takes once the other has all COUNT, "end" last.
The slow one's receive buffer is as small as the kernel makes it, and the library keeps one message.
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
    """The ticks of the next message, its other objects printed."""
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
    """Takes messages up to one with a tick."""
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
newest, has, seen, remaining = {}, {}, 0, 0
with (
    connect(url, sock=small, subprotocols=protocol, max_size=None, max_queue=1) as slow,
    connect(url, subprotocols=protocol, max_size=None) as healthy,
):
    subscribe(slow, policy="conflate")
    subscribe(healthy)
    line("ready")
    while seen < count:
        for topic, sequence, _ in ticks(healthy):
            newest[topic] = sequence
            seen += 1
            if seen % every == 0:
                take_slowly()
    while has != newest:
        remaining += take_slowly()
line(f"remaining {remaining}")
line("end")
