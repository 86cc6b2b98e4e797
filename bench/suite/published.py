"""Figures of other systems, published by others or seen in earlier runs, each with its source."""

from __future__ import annotations

from dataclasses import dataclass

CASE_STUDY = "the Go case study"
ENGINE = "the 5,000-connection engine"
EARLIER_RUN = "an earlier run on a similar machine"


@dataclass(frozen=True)
class Published:
    """One source's figures for a load, in its own terms."""

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
    Published("S1", EARLIER_RUN,
              "uWebSockets 1.97 us CPU per delivery, p99 1.6 ms; NATS 1.99 us, 51 ms; Redis 1.92 us, 7.4 ms"),
    Published("saturation", EARLIER_RUN, "NATS 1.26 M/s at 0.39 us; others under 0.2 M/s"),
    Published("S2", EARLIER_RUN, "NATS 443 MB/s"),
    Published("S3", EARLIER_RUN, "Nchan 1,386 MB/s"),
    Published("S4", EARLIER_RUN, "NATS 0.78 M/s, the rest under 0.14 M/s"),
    Published("engine", EARLIER_RUN, "uWebSockets p50 94 ms, p99 184 ms, 0.64 core"),
    Published("idle-ws", EARLIER_RUN, "uWebSockets 9 MB, Nchan 134 MB, NATS 385 MB"),
)


def of_load(name: str) -> list[Published]:
    """Published figures for a load."""
    return [one for one in PUBLISHED if one.load == name]
