"""subscribe.py URL rkyv|json|raw PATTERNS COUNT [batches|plain]: prints what Python `websockets` receives, as subscribe.mjs does."""

import base64
import json
import struct
import sys
from urllib.parse import quote

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

import wire

url, encoding, pattern_list, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
hello = sys.argv[5] if len(sys.argv) > 5 else None
patterns = pattern_list.split(",")
topics = {}
seen = 0
acknowledged = 0
messages = 0


def line(*words):
    print(*words, sep="\t", flush=True)


def tick(topic, sequence, payload):
    global seen
    seen += 1
    line(topic, sequence, base64.b64encode(payload).decode())


def acknowledge():
    global acknowledged
    acknowledged += 1
    if acknowledged == len(patterns):
        line("ready")


def on_frames(data):
    for kind, sequence, topic_id, record, payload in wire.frames(data):
        if kind == 65 and topic_id == 0:
            acknowledge()
        elif kind == 65:
            topics[topic_id] = payload.decode()
        elif kind == 67:
            tick(topics[topic_id], sequence, payload)
        elif kind == 70:
            line(f"closing {struct.unpack_from('<H', record, 4)[0]}")
        else:
            assert kind == 64, f"unexpected frame of kind {kind}: {payload}"


def on_text(text):
    for text in wire.objects(text):
        if (parts := wire.tick(text)) is not None:
            tick(*parts)
            continue
        body = json.loads(text)
        if body["op"] == "subscribed":
            if "pattern" in body:
                acknowledge()
        elif body["op"] != "welcome":
            assert body["op"] == "closing", text
            line(f"closing {body['code']}")


if encoding == "raw":
    url += "?topics=" + quote(pattern_list, safe=",")
with connect(url, open_timeout=60, subprotocols=[f"tickcast.v1.{encoding}"], max_size=None) as socket:
    assert socket.subprotocol == f"tickcast.v1.{encoding}", socket.subprotocol
    if hello is not None:
        features = ["batches"] if hello == "batches" else []
        socket.send(json.dumps({"op": "hello", "features": features}) if encoding == "json" else wire.hello(features))
    if encoding == "raw":
        line("ready")
    elif encoding == "json":
        socket.send(json.dumps({"op": "subscribe", "id": 1, "topics": patterns}))
    else:
        for pattern in patterns:
            socket.send(wire.subscribe(pattern))
    try:
        while count == 0 or seen < count:
            data, before = socket.recv(), seen
            assert isinstance(data, str) == (encoding == "json"), "a message of the wrong type"
            if encoding == "raw":
                tick("", seen + 1, data)
            elif encoding == "rkyv":
                on_frames(data)
            else:
                on_text(data)
            messages += seen > before
        socket.close(1000)
    except ConnectionClosed:
        pass
    if hello is not None:
        line("extensions " + ",".join(extension.name for extension in socket.protocol.extensions))
        line(f"messages {messages}")
    line(f"closed {socket.close_code}")
    line("end")
