"""echo.py URL SIZES: the same as echo.mjs with Python `websockets`."""

import sys

from websockets.sync.client import connect

url, sizes = sys.argv[1], [int(size) for size in sys.argv[2].split(",")]


def parts(message, fragments):
    step = -(-len(message) // fragments)
    return [message[part * step : (part + 1) * step] for part in range(fragments)]


with connect(url, open_timeout=60, max_size=None) as socket:
    for size in sizes:
        pattern = bytes(range(256)) * (size // 256 + 1)
        text = "aé漢🦀" * (size // 10)
        for kind, message in (("text", text), ("binary", pattern[:size])):
            for fragments in (1, 3):
                socket.send(message if fragments == 1 else parts(message, fragments))
                same = socket.recv() == message
                print(kind, size, fragments, "same" if same else "DIFFERENT", flush=True)
    socket.close(1000)
    print(f"closed {socket.close_code}")
    print("end")
