"""Price bars of a live feed, in the style of a notebook: each cell below may run on its own in Jupyter.

    python examples/bars.py [URL] [--ticks N]

With pandas installed, the last cell makes data frames; without it, it prints the same bars from plain rows. The feed is that of
`tickcast serve --replay tests/data/market.ndjson`: tickers on `market.ticker.PRODUCT`, with the price as a string.
"""

# %% Collect ticks: five lines.
from __future__ import annotations

import argparse
import asyncio
import importlib
from typing import Any

import tickcast


async def collect(url: str, pattern: str, ticks_max: int) -> tuple[list[dict[str, Any]], int]:
    """A row for each of the next ticks, and how many were lost between them."""
    rows: list[dict[str, Any]] = []
    async with tickcast.Client(url) as client, client.subscribe(pattern, since="oldest") as tickers:
        async for tick in tickers:
            product = tick.topic.rsplit(".", 1)[-1]
            rows.append({"time_ns": tick.time_ns, "product": product, "price": float(tick.data["price"])})
            if len(rows) >= ticks_max:
                break
        return rows, tickers.lost


# %% Make bars, without any library.
BAR_NS = 1_000_000_000


def bars(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Open, high, low, close and the number of ticks, for each product and second."""
    made: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        product, second, price = row["product"], row["time_ns"] // BAR_NS, row["price"]
        bar = made.get((product, second))
        if bar is None:
            prices = {"open": price, "high": price, "low": price, "close": price}
            made[product, second] = {"product": product, "second": second, **prices, "ticks": 1}
        else:
            bar["high"], bar["low"] = max(bar["high"], price), min(bar["low"], price)
            bar["close"], bar["ticks"] = price, bar["ticks"] + 1
    return [made[entry] for entry in sorted(made)]


# %% Show them.
def show(rows: list[dict[str, Any]], lost: int) -> None:
    """With pandas as a data frame, resampled by it; otherwise as text."""
    print(f"{len(rows)} ticks of {len({row['product'] for row in rows})} products, {lost} lost")
    try:
        pandas = importlib.import_module("pandas")
    except ImportError:
        print("without pandas: plain rows")
        for bar in bars(rows):
            print(" ".join(f"{name}={value}" for name, value in bar.items()))
        return
    frame = pandas.DataFrame(rows)
    frame["time"] = pandas.to_datetime(frame["time_ns"])
    prices = frame.set_index("time").groupby("product")["price"].resample("1s")
    print(prices.ohlc().dropna().to_string())


# %% Run the cells as a script. In a notebook: rows, lost = await collect(...); show(rows, lost)
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", default="ws://127.0.0.1:9480/ws")
    parser.add_argument("--ticks", type=int, default=60, help="ticks to collect")
    arguments = parser.parse_args()
    show(*asyncio.run(collect(arguments.url, "market.ticker.>", arguments.ticks)))
