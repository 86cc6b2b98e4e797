"""Figures that others published, or that were seen in earlier runs, each with its source. None of them is ours."""

from __future__ import annotations

from dataclasses import dataclass

CASE_STUDY = "the Go case study"
ENGINE = "the 5,000-connection engine"
SEEN = "an earlier run on a machine like this one, for orientation"


@dataclass(frozen=True)
class Published:
    """What somebody says of a load, as they say it."""

    load: str
    source: str
    text: str


PUBLISHED = (
    Published("S1", CASE_STUDY, "250,000 deliveries/s, median 1.2 ms, tail 15 to 20 ms"),
    Published("S2", CASE_STUDY, "200,000 deliveries/s, median 2.8 ms, tail 15 to 20 ms"),
    Published("S3", CASE_STUDY, "100,000 deliveries/s, median 8.5 ms, tail 15 to 20 ms"),
    Published("S4", CASE_STUDY, "80,000 deliveries/s, tail 15 to 20 ms"),
    Published("engine", ENGINE, "433,000 deliveries/s on 2 cores with 200 MB, P50 500 ms"),
    Published("engine-433k", ENGINE, "433,000 deliveries/s on 2 cores with 200 MB, P50 500 ms"),
    Published("spike", ENGINE, "P99 600 ms streaming, 320 ms from subscription"),
    Published("S1", SEEN, "uWebSockets 1.97 us CPU a delivery, p99 1.6 ms; NATS 1.99 us, 51 ms; Redis 1.92 us, 7.4 ms"),
    Published("saturation", SEEN, "NATS 1.26 M/s at 0.39 us; others under 0.2 M/s"),
    Published("S2", SEEN, "NATS 443 MB/s"),
    Published("S3", SEEN, "Nchan 1,386 MB/s"),
    Published("S4", SEEN, "NATS 0.78 M/s, the rest under 0.14 M/s"),
    Published("engine", SEEN, "uWebSockets p50 94 ms, p99 184 ms, 0.64 core"),
    Published("idle-ws", SEEN, "uWebSockets 9 MB, Nchan 134 MB, NATS 385 MB"),
)


def of_load(name: str) -> list[Published]:
    """What is known of a load."""
    return [one for one in PUBLISHED if one.load == name]
