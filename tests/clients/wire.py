"""The wire format of PROTOCOL.md, by offsets and by text."""

import base64
import json
import re
import struct

TICK = re.compile(r'\{"topic":("(?:[^"\\]|\\.)*"),"seq":(\d+),"ts":\d+(,"encoding":"base64")?,"data":')


def frames(data):
    """The frames of a binary message: kind, sequence, topic id, record, payload."""
    at = 0
    while at < len(data):
        length, magic, version, _, kind, stride, payload_len, sequence, topic_id, _ = struct.unpack_from(
            "<IHBBHHIQII", data, at
        )
        assert (magic, version) == (0x6374, 1), "magic or version"
        assert length == (32 + stride + payload_len + 15) // 16 * 16, "frame_len"
        assert at + length <= len(data), "a frame reaches past its message"
        record = data[at + 32 : at + 32 + stride]
        payload = data[at + 32 + stride : at + 32 + stride + payload_len]
        yield kind, sequence, topic_id, record, payload
        at += length


def subscribe(pattern):
    """A SUBSCRIBE frame."""
    text = pattern.encode()
    length = (40 + len(text) + 15) // 16 * 16
    header = struct.pack("<IHBBHHIQII", length, 0x6374, 1, 0, 2, 8, len(text), 0, 0, 0)
    return (header + struct.pack("<II", 1, 0) + text).ljust(length, b"\0")


def hello(features):
    """A HELLO frame that asks for `batches`, if that is among the features."""
    header = struct.pack("<IHBBHHIQII", 48, 0x6374, 1, 0, 1, 16, 0, 0, 0, 0)
    return header + struct.pack("<IHHQ", 0, 0, 0, 1 << 10 if "batches" in features else 0)


def objects(text):
    """The texts of a message's objects, unparsed: the message itself, or the elements of an array."""
    if not text.startswith("["):
        return [text]
    found, depth, start, at = [], 0, 0, 0
    while at < len(text):
        char = text[at]
        if char == '"':
            at += 1
            while text[at] != '"':
                at += 2 if text[at] == "\\" else 1
        elif char in "{[":
            if depth == 1 and char == "{":
                start = at
            depth += 1
        elif char in "}]":
            depth -= 1
            if depth == 1 and char == "}":
                found.append(text[start : at + 1])
        at += 1
    return found


def tick(text):
    """A tick's topic, sequence and payload as received; None for another message."""
    head = TICK.match(text)
    if head is None:
        return None
    data = text[head.end() : -1]
    payload = base64.b64decode(json.loads(data)) if head[3] else data.encode()
    return json.loads(head[1]), int(head[2]), payload
