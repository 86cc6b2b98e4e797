#!/usr/bin/env python3
"""Writes the test data of this folder: market.ndjson, feeds.ndjson and ecg/made.{hea,dat,atr}.

Everything is synthetic and comes from a fixed seed. Needs Python 3 and its standard library only.
"""

import json
import math
import random
import struct
from datetime import datetime, timedelta, timezone
from pathlib import Path

FOLDER = Path(__file__).parent

# Market capture ------------------------------------------------------------------------------------------------------

LINES = 4_000
# Mean time between two lines: the capture lasts about 15 seconds.
MEAN_GAP_NS = 3_800_000
START = datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
# Product, share of the updates, price and price step. The shares are uneven, as they are on a real exchange.
PRODUCTS = [
    ("ALPHA-USD", 26, 0.4812, 0.0001),
    ("BRAVO-BTC", 19, 0.005561, 0.000001),
    ("CEDAR-USD", 15, 14.7775, 0.0005),
    ("DELTA-EUR", 10, 48.31, 0.01),
    ("EMBER-USD", 8, 2.9063, 0.0001),
    ("FJORD-BTC", 7, 0.8204, 0.0001),
    ("GROVE-GBP", 6, 0.5152, 0.0001),
    ("HAZEL-USD", 5, 331.2, 0.1),
    ("IRIS-EUR", 3, 1.0004, 0.0001),
    ("JASPER-GBP", 1, 7.25, 0.05),
]
# The two quietest products never trade: 10 books, 10 tickers and 8 streams of trades are 28 topics.
TRADED = [product for product, _, _, _ in PRODUCTS[:8]]


def decimals(step):
    return max(0, -math.floor(math.log10(step)))


def market():
    rng = random.Random(1)
    price = {product: start for product, _, start, _ in PRODUCTS}
    step = {product: step for product, _, _, step in PRODUCTS}
    sequence = {product: 1_000 * (number + 1) for number, (product, *_) in enumerate(PRODUCTS)}
    trade_id = 500_000
    at_ns = 0
    # Each topic once, so that all 28 are there whatever the dice say.
    kinds = [("ticker", product) for product, *_ in PRODUCTS]
    kinds += [("book", product) for product, *_ in PRODUCTS] + [("trade", product) for product in TRADED]
    names = [product for product, *_ in PRODUCTS]
    shares = [share for _, share, _, _ in PRODUCTS]
    while len(kinds) < LINES:
        product = rng.choices(names, shares)[0]
        kind = rng.choices(["book", "trade", "ticker"], [96, 2, 2])[0]
        kinds.append((kind if kind != "trade" or product in TRADED else "book", product))
    lines = []
    for kind, product in kinds:
        digits = decimals(step[product])
        price[product] = max(step[product], price[product] + rng.choice([-2, -1, 0, 0, 1, 2]) * step[product])
        now, size, side = price[product], f"{rng.expovariate(0.01):.8f}", rng.choice(["buy", "sell"])
        sequence[product] += rng.randint(1, 4)
        time = (START + timedelta(microseconds=at_ns // 1_000)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if kind == "book":
            away = rng.randint(1, 40) * step[product]
            level = max(step[product], now - away if side == "buy" else now + away)
            data = {"type": "book", "product": product, "changes": [[side, f"{level:.{digits}f}", size]]}
        elif kind == "trade":
            trade_id += 1
            data = {"type": "trade", "trade_id": trade_id, "product": product, "side": side, "size": size}
            data["price"] = f"{now:.{digits}f}"
        else:
            data = {"type": "ticker", "product": product, "price": f"{now:.{digits}f}", "side": side}
            data |= {"best_bid": f"{now - step[product]:.{digits}f}", "best_ask": f"{now:.{digits}f}"}
            data |= {"open_24h": f"{now * 0.97:.{digits}f}", "volume_24h": f"{rng.uniform(1e3, 1e6):.8f}"}
        data |= {"sequence": sequence[product], "time": time}
        line = {"at_ns": at_ns, "topic": f"market.{kind}.{product}", "data": data}
        lines.append(json.dumps(line, separators=(",", ":")))
        at_ns += int(rng.expovariate(1 / MEAN_GAP_NS))
    (FOLDER / "market.ndjson").write_text("\n".join(lines) + "\n")


# ECG record ----------------------------------------------------------------------------------------------------------

FS_HZ = 360
SECONDS = 300
UNITS_PER_MV = 200
BASELINE = 1024
# Annotation codes, annot(5wfdb).
NORMAL, VENTRICULAR, ATRIAL, RHYTHM, AUX = 1, 5, 8, 28, 63
# The waves of a beat: seconds after the R peak, standard deviation in seconds, mV on each of the two leads.
WAVES = {
    NORMAL: [
        (-0.160, 0.022, (0.13, 0.07)),
        (-0.032, 0.009, (-0.12, -0.08)),
        (0.0, 0.011, (1.15, 0.85)),
        (0.032, 0.011, (-0.24, -0.42)),
        (0.260, 0.045, (0.28, 0.20)),
    ],
    # A premature atrial beat: its P wave is inverted and early.
    ATRIAL: [
        (-0.130, 0.020, (-0.08, -0.05)),
        (-0.032, 0.009, (-0.12, -0.08)),
        (0.0, 0.011, (1.08, 0.80)),
        (0.032, 0.011, (-0.22, -0.40)),
        (0.250, 0.045, (0.25, 0.18)),
    ],
    # A premature ventricular beat: no P wave, a wide complex and an inverted T wave.
    VENTRICULAR: [
        (0.0, 0.020, (1.45, 1.10)),
        (0.075, 0.028, (-0.35, -0.30)),
        (0.330, 0.060, (-0.30, -0.20)),
    ],
}


def heart(rng):
    """The R peaks: frame and annotation code."""
    beats, at_s, number = [], 0.42, 0
    while at_s < SECONDS - 0.6:
        kind, factor, pause = NORMAL, 1.0, 1.0
        if number % 61 == 40:
            kind, factor, pause = VENTRICULAR, 0.66, 1.34
        elif number % 23 == 17:
            kind, factor, pause = ATRIAL, 0.74, 1.08
        if beats:
            rr_s = 0.82 + 0.035 * math.sin(math.tau * 0.25 * at_s) + 0.04 * math.sin(math.tau * 0.011 * at_s)
            rr_s += rng.gauss(0, 0.012)
            at_s += rr_s * factor * heart.pause
        heart.pause = pause
        beats.append((round(at_s * FS_HZ), kind))
        number += 1
    return beats


heart.pause = 1.0


def ecg():
    rng = random.Random(2)
    beats = heart(rng)
    frames = SECONDS * FS_HZ
    signals = []
    for lead, (noise_mv, wander_mv) in enumerate([(0.012, 0.06), (0.015, 0.09)]):
        mv = [
            wander_mv * math.sin(math.tau * 0.25 * n / FS_HZ + lead)
            + 0.5 * wander_mv * math.sin(math.tau * 0.07 * n / FS_HZ)
            + rng.gauss(0, noise_mv)
            for n in range(frames)
        ]
        for frame, kind in beats:
            for after_s, deviation_s, heights_mv in WAVES[kind]:
                middle, deviation = frame + after_s * FS_HZ, deviation_s * FS_HZ
                first, last = math.floor(middle - 5 * deviation), math.ceil(middle + 5 * deviation)
                for n in range(max(0, first), min(frames, last + 1)):
                    mv[n] += heights_mv[lead] * math.exp(-0.5 * ((n - middle) / deviation) ** 2)
        signals.append([max(0, min(2047, BASELINE + round(value * UNITS_PER_MV))) for value in mv])

    folder = FOLDER / "ecg"
    data = bytearray()
    for a, b in zip(*signals):
        data += bytes([a & 0xFF, a >> 8 | b >> 8 << 4, b & 0xFF])
    (folder / "made.dat").write_bytes(data)

    header = [f"made 2 {FS_HZ} {frames}"]
    for samples, name in zip(signals, ["II", "V5"]):
        checksum = (sum(samples) + 0x8000) % 0x10000 - 0x8000
        header.append(f"made.dat 212 {UNITS_PER_MV} 11 {BASELINE} {samples[0]} {checksum} 0 {name}")
    header.append("# Synthetic: see README.md")
    (folder / "made.hea").write_text("\n".join(header) + "\n")

    def word(code, field):
        return struct.pack("<H", code << 10 | field)

    rhythm = 18
    annotations = bytearray(word(RHYTHM, rhythm) + word(AUX, 3) + b"(N\0\0")
    before = rhythm
    for frame, kind in beats:
        annotations += word(kind, frame - before)
        before = frame
    annotations += word(0, 0)
    (folder / "made.atr").write_bytes(annotations)
    print({name: sum(kind == code for _, kind in beats) for name, code in
           [("normal", NORMAL), ("atrial", ATRIAL), ("ventricular", VENTRICULAR)]}, beats[:3])


# Feeds in the shapes of exchanges ------------------------------------------------------------------------------------

FEED_LINES = 1_500
FEED_GAP_NS = 10_000_000
# Product as Kraken and as Bybit would write it, and its price, step and decimals.
FEED_PRODUCTS = [("ALPHA/USD", "ALPHAUSDT", 41_250.3, 0.1, 5), ("BRAVO/USD", "BRAVOUSDT", 2_310.42, 0.01, 2), ("CEDAR/USD", "CEDARUSDT", 0.48127, 0.00001, 4)]


class Feed:
    """A product's price, which walks, and its numbers as an exchange writes them."""

    def __init__(self, rng, pair, symbol, price, step, size_decimals):
        self.rng, self.pair, self.symbol, self.step = rng, pair, symbol, step
        self.opening = self.price = price
        self.places = decimals(step)
        self.size_decimals = size_decimals
        self.sequence = 0
        self.volume = rng.uniform(2_000, 9_000)

    def move(self):
        self.price += self.rng.choice([-2, -1, 0, 0, 1, 2]) * self.step
        self.sequence += 1

    def text(self, steps=0):
        return f"{self.price + steps * self.step:.{self.places}f}"

    def size(self):
        return f"{self.rng.expovariate(1) + 0.01:.{self.size_decimals}f}"

    def grow(self):
        self.volume += self.rng.expovariate(2)
        return f"{self.volume:.8f}"


def kraken(feed, channel, seconds):
    """A message of Kraken's first protocol: an array whose fields have names of one letter, or none."""
    if channel == "ticker":
        opening = f"{feed.opening:.{feed.places}f}"
        body = {"a": [feed.text(1), 1, feed.size()], "b": [feed.text(-1), 1, feed.size()], "c": [feed.text(), feed.size()],
                "v": [f"{feed.volume / 3:.8f}", feed.grow()], "p": [feed.text(-3), feed.text(-4)], "t": [812, 2410],
                "l": [feed.text(-90), feed.text(-130)], "h": [feed.text(70), feed.text(110)], "o": [opening, opening]}
    elif channel == "trade":
        body = [[feed.text(), feed.size(), f"{seconds:.6f}", feed.rng.choice("bs"), "l", ""] for _ in range(feed.rng.randint(1, 3))]
    elif channel == "spread":
        body = [feed.text(-1), feed.text(1), f"{seconds:.6f}", feed.size(), feed.size()]
    else:
        side = feed.rng.choice("ab")
        steps = range(1, feed.rng.randint(2, 4)) if side == "a" else range(-1, -feed.rng.randint(2, 4), -1)
        body = {side: [[feed.text(n), feed.size() if feed.rng.random() < 0.8 else f"{0:.{feed.size_decimals}f}", f"{seconds:.6f}"] for n in steps],
                "c": str(feed.rng.randrange(1 << 32))}
        channel = "book-10"
    return [340 + len(feed.pair), body, channel, feed.pair]


def bybit(feed, channel, milliseconds, isFirst):
    """A message of Bybit: camel-case tickers whose deltas leave out what is the same, and rows of an order book or of trades."""
    if channel == "tickers":
        whole = {"symbol": feed.symbol, "lastPrice": feed.text(), "bid1Price": feed.text(-1), "bid1Size": feed.size(), "ask1Price": feed.text(1),
                 "ask1Size": feed.size(), "prevPrice24h": f"{feed.opening:.{feed.places}f}", "volume24h": feed.grow(), "turnover24h": f"{feed.volume * feed.price:.4f}"}
        kept = whole if isFirst else {key: value for key, value in whole.items() if key == "symbol" or feed.rng.random() < 0.45}
        return {"topic": f"tickers.{feed.symbol}", "type": "snapshot" if isFirst else "delta", "data": kept, "cs": 24_987_956_059 + feed.sequence, "ts": milliseconds}

    def row(steps, **more):
        identifier = round((feed.price + steps * feed.step) * 10_000)
        return {"price": feed.text(steps), "symbol": feed.symbol, "id": identifier, "side": "Buy" if steps < 0 else "Sell", **more}

    if channel == "trade":
        trade = {"trade_time_ms": milliseconds, "symbol": feed.symbol, "side": feed.rng.choice(["Buy", "Sell"]), "size": float(feed.size()),
                 "price": float(feed.text()), "tick_direction": "PlusTick", "trade_id": f"{feed.rng.getrandbits(64):016x}", "cross_seq": feed.sequence}
        return {"topic": f"trade.{feed.symbol}", "data": [trade]}
    if channel == "orderBookL2_25" and isFirst:
        data = [row(n, size=feed.rng.randint(1, 5_000)) for n in [*range(-25, 0), *range(1, 26)]]
        return {"topic": f"{channel}.{feed.symbol}", "type": "snapshot", "data": data, "cross_seq": feed.sequence, "timestamp_e6": milliseconds * 1000}
    data = {"delete": [row(feed.rng.choice([-3, 3]))] if feed.rng.random() < 0.3 else [],
            "update": [row(n, size=feed.rng.randint(1, 5_000)) for n in feed.rng.sample([-2, -1, 1, 2], feed.rng.randint(1, 3))],
            "insert": [row(feed.rng.choice([-4, 4]), size=feed.rng.randint(1, 5_000))] if feed.rng.random() < 0.3 else []}
    return {"topic": f"{channel}.{feed.symbol}", "type": "delta", "data": data, "cross_seq": feed.sequence, "timestamp_e6": milliseconds * 1000}


def feeds():
    rng = random.Random(11)
    products = [Feed(rng, *product) for product in FEED_PRODUCTS]
    choices = [("kraken", "ticker", 4), ("kraken", "book", 8), ("kraken", "trade", 2), ("kraken", "spread", 3),
               ("bybit", "tickers", 6), ("bybit", "orderBookL2_25", 8), ("bybit", "trade", 2), ("bybit", "image", 1)]
    seen, lines, at_ns = set(), [], 0
    for _ in range(FEED_LINES):
        at_ns += round(rng.expovariate(1) * FEED_GAP_NS)
        time = START + timedelta(microseconds=at_ns // 1000)
        exchange, channel, _ = rng.choices(choices, [share for _, _, share in choices])[0]
        feed = rng.choice(products)
        feed.move()
        # The images are on a topic of their own: the table shows the best of each, and the changes beside them.
        isFirst = (channel, feed.symbol) not in seen or channel == "image"
        seen.add((channel, feed.symbol))
        name = "orderBookL2_25" if channel == "image" else channel
        data = kraken(feed, channel, time.timestamp()) if exchange == "kraken" else bybit(feed, name, round(time.timestamp() * 1000), isFirst)
        product = feed.pair.replace("/", "-") if exchange == "kraken" else feed.symbol
        lines.append(json.dumps({"at_ns": at_ns, "topic": f"{exchange}.{channel}.{product}", "data": data}, separators=(",", ":")))
    (FOLDER / "feeds.ndjson").write_text("\n".join(lines) + "\n")


market()
feeds()
ecg()
