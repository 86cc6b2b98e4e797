"""sse.py ADDRESS: reads a stream with http.client, which knows nothing of events, publishes, and reads what is kept."""

import http.client
import json
import sys

address = sys.argv[1]


def ask(method, path, body=None, headers=None):
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def events(response):
    event = {}
    for line in response:
        field, _, value = line.decode().rstrip("\n").partition(": ")
        if field:
            event[field] = value
        elif event:
            yield event
            event = {}


stream = http.client.HTTPConnection(address, timeout=60)
stream.request("GET", "/sse?topics=py.>")
response = stream.getresponse()
assert response.status == 200 and response.getheader("Content-Type") == "text/event-stream"
stream_events = events(response)
assert next(stream_events) == {"retry": "1000"}
while next(stream_events)["event"] != "subscribed":
    pass
for n in range(1, 4):
    status, answer = ask("POST", f"/v1/publish/py.{n}", json.dumps({"n": n}))
    assert status == 200 and answer["sequence"] == 1, answer
found, last = [], None
while len(found) < 3 or last is None or last.count(";") < 3:
    event = next(stream_events)
    last = event.get("id", last)
    if event["event"] == "tick":
        found.append(json.loads(event["data"])["data"]["n"])
assert found == [1, 2, 3], found
stream.close()

# What was published meanwhile follows the id.
ask("POST", "/v1/publish/py.2", b"\x00\xff", {"Content-Type": "application/octet-stream"})
stream = http.client.HTTPConnection(address, timeout=60)
stream.request("GET", "/sse?topics=py.>", headers={"Last-Event-ID": last})
for event in events(stream.getresponse()):
    if event.get("event") == "tick":
        tick = json.loads(event["data"])
        assert (tick["topic"], tick["seq"], tick["data"]) == ("py.2", 2, "AP8="), tick
        break
stream.close()

status, latest = ask("GET", "/v1/latest?topics=py.*")
assert status == 200 and len(latest["topics"]) == 3, latest
status, history = ask("GET", "/v1/history?topic=py.2")
assert [tick["seq"] for tick in history["ticks"]] == [1, 2], history
status, refused = ask("GET", "/v1/history?topic=py.*")
assert status == 400 and refused["error"]["code"] == 100, refused
print("end")
