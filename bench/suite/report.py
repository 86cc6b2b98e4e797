"""The Markdown report, from the figures alone: nothing is measured and no figure is written here."""

from __future__ import annotations

import shlex

import judge
import loads
import published
from figures import Row
from loads import Load

NONE = "-"
# From this share of its core on the load client says that it was the bottleneck itself.
BOTTLENECK_MARK = "**!**"
# Shares of the machine that others had in the window, in percent, from which on a row is marked as noisy.
NOISE_PERCENT = 5.0


def number(value: float | None, form: str = ",.0f") -> str:
    """A number, or the mark for none."""
    return NONE if value is None else format(value, form)


def count(value: float | None) -> str:
    """A large count, in short."""
    if value is None:
        return NONE
    if value >= 10_000_000:
        return f"{value / 1e6:,.1f} M"
    if value >= 1_000_000:
        return f"{value / 1e6:,.2f} M"
    return f"{value:,.0f}"


def ms(us: float | None) -> str:
    """A latency in milliseconds, with three digits that mean something."""
    if us is None:
        return NONE
    value = us / 1e3
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:,.1f}"


def percent(share: float | None) -> str:
    """A share."""
    return NONE if share is None else f"{share:.0%}"


def mib(size: float | None) -> str:
    """Bytes in MiB."""
    return NONE if size is None else f"{size / (1 << 20):,.1f}"


def table(head: list[str], lines: list[list[str]]) -> list[str]:
    """A Markdown table."""
    cells = [head, ["---"] * len(head), *lines]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells]


def p99(row: Row) -> str:
    """The reported p99, and the range where there were more runs."""
    if row.p99_range_us is None:
        return ms(row.p99_us)
    low, high = row.p99_range_us
    return f"{ms(row.p99_us)} ({ms(low)} to {ms(high)})"


def lost(row: Row) -> str:
    """Lost without a word."""
    if row.lost is None:
        return NONE
    about = "about " if row.lost_is_estimate and row.lost else ""
    return about + count(row.lost) + (f" ({count(row.lost_tail)} at the end)" if row.lost_tail else "")


def client_cpu(row: Row) -> str:
    """The busiest thread of the load client and the publisher beside it, marked where they were the bottleneck."""
    feed = f" + {percent(row.feed_cpu_share)} feed" if row.feed_cpu_share is not None else ""
    return percent(row.client_cpu_share) + feed + (f" {BOTTLENECK_MARK}" if row.client_is_bottleneck else "")


def noise(row: Row) -> str:
    """What others had of the machine in the window."""
    if row.steal_percent is None:
        return NONE
    heard = row.steal_percent + (row.others_percent or 0.0)
    return f"{heard:.1f} %" + (f" {BOTTLENECK_MARK}" if heard > NOISE_PERCENT else "")


def per_send(row: Row) -> str:
    """CPU of one SEND and its ratio to the bare loop's."""
    if row.cpu_us_per_send is None:
        return NONE
    ratio = row.bare_ratio
    own = f"{row.cpu_us_per_send:.2f} us at {row.bytes_per_send or 0:,.0f} B"
    return own + (f", {ratio:.2f}x bare at {row.bare_bytes_per_send or 0:,.0f} B" if ratio is not None else "")


def bare_share(row: Row) -> str:
    """MB/s on the wire, and the share of the bare loop's."""
    text = number(row.payload_mb_per_s, ",.1f")
    return text + (f" ({row.bare_rate_share:.0%} of bare)" if row.bare_rate_share is not None else "")


def latency_ratio(row: Row) -> str:
    """Latency as multiples of what the bare loop had right after, at the same sizes and rate."""
    quotients = [(row.p50_us, row.bare_p50_us), (row.p99_us, row.bare_p99_us)]
    if any(not own or not bare for own, bare in quotients):
        return NONE
    return ", ".join(f"{own / bare:.2f}x" for own, bare in quotients) + f" ({ms(row.bare_p99_us)})"


# Columns of the loads at a constant rate; those of which no row has a figure are left out.
CONSTANT_COLUMNS = (
    ("offered/s", lambda row: count(row.offered_per_s)),
    ("delivered/s", lambda row: count(row.delivered_per_s)),
    ("lost", lost),
    ("announced", lambda row: count(row.announced)),
    ("refused", lambda row: count(row.refused) if row.refused else NONE),
    ("closed", lambda row: NONE if row.delivered_per_s is None else count(row.ended)),
    ("p50 ms", lambda row: ms(row.p50_us)),
    ("p90 ms", lambda row: ms(row.p90_us)),
    ("p99 ms", p99),
    ("p99.9 ms", lambda row: ms(row.p999_us)),
    ("max ms", lambda row: ms(row.max_us)),
    ("p99 uncorrected ms", lambda row: ms(row.uncorrected_p99_us)),
    ("skew p99 ms", lambda row: ms(row.skew_p99_us)),
    ("CPU us a delivery", lambda row: number(row.cpu_us_per_delivery, ".3f")),
    ("server CPU", lambda row: percent(row.server_cpu_share)),
    ("RSS MiB", lambda row: mib(row.server_rss_bytes)),
    ("client CPU", client_cpu),
    ("payload MB/s", bare_share),
    ("CPU per SEND", per_send),
    ("p50, p99 over the bare loop's", latency_ratio),
    ("noise", noise),
)
SATURATION_COLUMNS = (
    ("highest clean step/s", lambda row: count(row.clean_per_s)),
    ("most delivered/s at any step", lambda row: count(row.most_per_s)),
    ("unthrottled delivered/s", lambda row: count(row.unthrottled_per_s)),
    ("unthrottled lost", lambda row: count(row.unthrottled_lost)),
    ("unthrottled announced", lambda row: count(row.unthrottled_announced)),
    ("unthrottled CPU us a delivery", lambda row: number(row.unthrottled_cpu_us_per_delivery, ".3f")),
    *CONSTANT_COLUMNS[1:],
)
IDLE_COLUMNS = (
    ("RSS a connection, bytes", lambda row: count(row.rss_bytes_per_connection)),
    ("RSS MiB", lambda row: mib(row.server_rss_bytes)),
    ("server CPU", lambda row: NONE if row.server_cpu_share is None else f"{row.server_cpu_share:.2%}"),
    ("closed", lambda row: count(row.ended)),
    ("noise", noise),
)
SPIKE_COLUMNS = (
    ("first tick p50 ms", lambda row: ms(row.subscription_p50_us)),
    ("first tick p99 ms", lambda row: ms(row.subscription_p99_us)),
    ("connect to first tick p99 ms", lambda row: ms(row.connect_p99_us)),
    ("p99 from the first connect on ms", lambda row: ms(row.spike_p99_us)),
    *CONSTANT_COLUMNS,
)


def columns_of(load: Load):
    """The columns of a load's table."""
    if load.name == "spike":
        return SPIKE_COLUMNS
    return {"saturation": SATURATION_COLUMNS, "idle": IDLE_COLUMNS}.get(load.kind, CONSTANT_COLUMNS)


def load_table(load: Load, rows: list[Row]) -> list[str]:
    """One line a system, columns without any figure left out."""
    measured = [row for row in rows if not row.failed]
    columns = [column for column in columns_of(load) if any(column[1](row) != NONE for row in measured)]
    lines = [
        [row.name, *(("failed" if row.failed and at == 0 else NONE if row.failed else of(row)) for at, (_, of) in
                     enumerate(columns))]
        for row in rows
    ]
    return table(["system", *(name for name, _ in columns)], lines) if columns else []


def load_section(load: Load, rows: list[Row], pictures: list[str]) -> list[str]:
    """A load with its table, its notes, what others published, and the commands."""
    lines = [f"### {load.title}", "", *load_table(load, rows), ""]
    notes = [load.note] if load.note else []
    for row in rows:
        if row.failed:
            notes.append(f"{row.name}: {row.failed}.")
        notes += [f"{row.name}: {note}." for note in row.notes]
    lines += [f"- {note}" for note in notes] + ([""] if notes else [])
    known = published.of_load(load.name)
    lines += [f"- Published, {one.source}: {one.text}." for one in known] + ([""] if known else [])
    if f"{load.name}.svg" in pictures:
        lines += [f"![Latency by percentile](plots/{load.name}.svg)", ""]
    commands = [row for row in rows if row.commands]
    if commands:
        lines += ["<details><summary>Commands</summary>", "", "```"]
        for row in commands:
            lines += [f"# {row.name}", *row.commands]
        lines += ["```", "", "</details>", ""]
    return lines


def machine_section(result: dict) -> list[str]:
    """What it ran on."""
    machine = result["machine"]
    virtual = ", a virtual machine" if machine["hypervisor"] else ""
    lines = [
        "## Machine",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB{virtual}; Linux {machine['kernel']}. "
        f"Commit {machine['commit']}, {result['started']}. Steal (time the host gave to other machines) over the whole "
        f"run: {result['steal_percent']:.2f} %.",
        "",
        "Only ratios carry over to another machine. " + "; ".join(machine["versions"].values()) + ".",
        "",
        "<details><summary>Kernel settings</summary>",
        "",
        "```",
        *(f"{name} = {value}" for name, value in machine["sysctls"].items() if value),
        "```",
        "",
        "</details>",
        "",
    ]
    return lines


def intro(result: dict) -> list[str]:
    """What this is and how it is made again."""
    words = shlex.join(["bench/run", *result.get("arguments", [])])
    runs = result["repeat"]
    shown = f"the median of {runs} runs by p99, and the range of p99" if runs > 1 else "one run each"
    return [
        "# Measured",
        "",
        f"Written by `{words}`; do not edit. `bench/run --help` says what else may be asked for. Each row is a window "
        f"of {result['window_s']} s after {result['warm_up_s']} s of warm-up, {shown}; the systems of a load run in turn.",
        "",
        "The server has core 0, the load client and an outside publisher have core 1, all over loopback. Producers are "
        "an open loop: they send at their rate whatever becomes of it, and latency is corrected, from the time at "
        "which a tick was meant to be sent to the read that brought it. A delivery is one tick at one client. *Offered* is "
        "the producers' rate times the clients; *lost* is what had not come two seconds after the window to some "
        "client though another had it, and nobody said so; *announced* is what the client was told it would not get "
        "(conflated or dropped), both since it subscribed; *refused* never got a number, since there was no room for it or no leave. A system that is only ever later loses nothing: *delivered* "
        "shows it. CPU is user and system time of all of the server's "
        "processes, which the kernel counts in steps of 10 ms. *simulator*: ticks come from inside "
        "the server, as the hub's do (the case study's design in Go); "
        "*network*: from `tickcast-feed`, as those of the other peers do. NATS and Redis are spoken to in their own "
        "protocols, Nchan and the hub over WebSockets. *Skew* is from the first to the last client that has a tick; "
        "*uncorrected* latency begins when the server received a tick. "
        f"{BOTTLENECK_MARK} marks rows where the load client, with the publisher, used more than 85 % of their core "
        f"(then latency and rate are their own), or where others had more than {NOISE_PERCENT:.0f} % of the machine in "
        "the window (*noise*: steal and foreign processes).",
        "",
        "*CPU per SEND* is beside the bare loop: a program that SENDs the same bytes in the same sizes, as often, to "
        "as many sockets, with no broker at all. Its latency, in brackets its p99, is from the time at which a round was due: "
        "what machine and kernel add to ours. Its ticks wait for no round, ours do for a SEND under way or a budget.",
        "",
    ]


def reach_section(verdicts: list[judge.Verdict]) -> list[str]:
    """Aims and what became of them."""
    words = {True: "reached", False: "**not reached**", None: "not measured"}
    lines = [
        [one.load, one.wanted, NONE if one.reached is None else one.found, words[one.reached]] for one in verdicts
    ]
    return ["## Aims", "", *table(["load", "aim", "figure", ""], lines), ""]


def losses_section(rows: dict[str, list[Row]]) -> list[str]:
    """Every column in which a peer is better."""
    lines = ["## Where we lose", ""]
    for name, of_load in rows.items():
        sentences = judge.losses(of_load)
        if sentences:
            lines += [f"**{name}**", "", *(f"- {sentence}" for sentence in sentences), ""]
    if len(lines) == 2:
        compared = any(not row.is_tickcast and not row.failed for of_load in rows.values() for row in of_load)
        lines += ["In no column of any load." if compared else "No peer was measured.", ""]
    return lines


def markdown(result: dict, pictures: list[str]) -> str:
    """The whole report."""
    rows = {one["name"]: [Row.from_json(row) for row in one["rows"]] for one in result["loads"]}
    known = {load.name: load for load in loads.LOADS}
    lines = [*intro(result), *machine_section(result), *reach_section(judge.verdicts(rows)), *losses_section(rows)]
    lines += ["## Loads", ""]
    for name, of_load in rows.items():
        if name in known:
            lines += load_section(known[name], of_load, pictures)
    return "\n".join(lines).rstrip() + "\n"
