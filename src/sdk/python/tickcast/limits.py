"""Every bound of the client. Units are in the names; the options of `Client` change those that say so."""

from typing import Final

# Names and tokens, as in PROTOCOL.md.
MAX_RATE_LOWEST: Final = 0.001
"""Ticks per second of a subscription."""
MAX_RATE_HIGHEST: Final = 1_000.0
JSON_ENVELOPE_BYTES: Final = 4 << 10
"""What a JSON message may have beyond the base64 of the largest frame."""
RESUME_MESSAGE_BYTES: Final = 64 << 10
"""Length at which positions in native frames continue in another message."""
TOPIC_BYTES_MAX: Final = 255
"""UTF-8 bytes of a topic's name, or of a pattern."""
TOKEN_BYTES_MAX: Final = 8 << 10
RESUME_POSITIONS_MAX: Final = 16_384
"""Positions in one request. A subscription with more of them starts with the last values."""
RESUME_NAMES_BYTES_MAX: Final = 1 << 20
"""UTF-8 bytes of the names of these positions."""
FRAME_BYTES_MAX_DEFAULT: Final = 256 << 10
"""Largest request before the server's welcome says what it accepts."""
MESSAGE_BYTES_MAX: Final = 32 << 20
"""Largest message accepted from a server: a frame of 16 MiB as base64, and its neighbours. An option of `Client`."""

U64_MAX: Final = 2**64 - 1
"""Largest epoch, sequence, key and time."""

# Reconnecting: as tickcast's other clients.
RECONNECT_BASE_MS: Final = 500
"""Upper bound of the first delay; it doubles with each attempt."""
RECONNECT_CAP_MS: Final = 20_000
"""Upper bound of every delay."""
RECONNECT_STABLE_MS: Final = 10_000
"""Time a connection must last before delays start small again."""
RECONNECT_AFTER_MS_MAX: Final = 900_000
"""Longest delay that a server can request."""
NOT_ADMITTED_DELAY_MS: Final = 1_000
"""Shortest delay after close code 3504."""

# What one client holds.
SUBSCRIPTIONS_MAX: Final = 1_024
"""Subscriptions of one client: the server's default limit for one session."""
TOPICS_MAX: Final = 1 << 20
"""Topics of one connection. A server announces no more than its own limit, 65,536 by default."""
POSITIONS_MAX: Final = 65_536
"""Topics whose positions the client keeps: the server's default limit of topics."""
UNACKNOWLEDGED_MAX: Final = 1_024
"""Publishes that wait for their answer."""
RETRIED_BYTES_MAX: Final = 8 << 20
"""Bytes of the payloads of those that have a message id, which the client may send again."""
MESSAGE_ID_BYTES_MAX: Final = 255
"""UTF-8 bytes of a message id; the server's limit."""
MESSAGE_ID_NS: Final = 60_000_000_000
"""How long a server certainly knows a message id: half of its default."""
OFFLINE_QUEUE_MAX: Final = 64
"""Publishes kept while there is no connection. An option of `Client`."""
OFFLINE_QUEUE_BYTES_MAX: Final = 256 << 10
"""Bytes of their payloads."""
EVENTS_MAX: Final = 4_096
"""Events that wait for the reader of one iterator. An option of `Client.subscribe`."""
REQUESTS_MAX: Final = 4_096
"""Requests of one connection, other than publishes, that wait for their answers."""
CLIENT_EVENTS_MAX: Final = 1_024
"""Events of the client itself that wait for the reader of one iterator."""
OUTPUT_BYTES_MAX: Final = 1 << 20
"""Bytes of requests that wait for the socket. Further ones are refused; one request may exceed it."""

# Time.
WELCOME_TIMEOUT_MS: Final = 10_000
"""From the start of an attempt to the welcome."""
TOKEN_TIMEOUT_MS: Final = 30_000
"""From asking the application for a token to its answer."""
PING_INTERVAL_MS: Final = 10_000
"""Between two pings of the client. A connection on which nothing arrived since the last one is dead."""
ASLEEP_MS: Final = 5_000
"""A timer later than this means that the machine was asleep: messages may still wait to be read."""
PUBLISH_TIMEOUT_MS: Final = 10_000
"""Wait for the answer to a publish. An option of `Client.publish`."""
SAVE_DELAY_MS: Final = 1_000
"""From a change of a position to saving it."""
PINGS_REMEMBERED: Final = 6
"""Pings over which the shortest round trip and the fastest delivery are taken."""

# Views.
VIEW_ENTRIES_MAX: Final = 65_536
"""Entries of one keyed view, all topics together. An option of the view."""
BOOKS_MAX: Final = 65_536
"""Topics of one order book view."""
BOOK_LEVELS_MAX: Final = 65_536
"""Price levels of one side of one order book."""
