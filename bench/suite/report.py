"""Renders the results: the Markdown report and the tables for the terminal. Measures nothing."""

from __future__ import annotations

import shlex

import judge
import loads
import published
from figures import Row
from loads import Load

NONE = "-"
# Marks rows whose figures the client or the machine's noise distorts.
DISTORTED_MARK = "**!**"
# A row is noisy if others used more than this percentage of the machine during its window.
NOISE_PERCENT_MAX = 5.0


def number(value: float | None, form: str = ",.0f") -> str:
    """A number, or `NONE`."""
    return NONE if value is None else format(value, form)


def count(value: float | None) -> str:
    """A count; millions are abbreviated."""
    if value is None:
        return NONE
    if value >= 10_000_000:
        return f"{value / 1e6:,.1f} M"
    if value >= 1_000_000:
        return f"{value / 1e6:,.2f} M"
    return f"{value:,.0f}"


def ms(us: float | None) -> str:
    """A latency in milliseconds, with three significant digits."""
    if us is None:
        return NONE
    value = us / 1e3
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:,.1f}"


def percent(share: float | None) -> str:
    """A share as a percentage."""
    return NONE if share is None else f"{share:.0%}"


def mib(size: float | None) -> str:
    """Bytes in MiB."""
    return NONE if size is None else f"{size / (1 << 20):,.1f}"


def table(head: list[str], lines: list[list[str]]) -> list[str]:
    """A Markdown table."""
    cells = [head, ["---"] * len(head), *lines]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells]


def aligned(head: list[str], lines: list[list[str]], left: tuple[int, ...] = (0,)) -> list[str]:
    """A table for the terminal. The columns in `left` are flush left, the others flush right."""
    widths = [max(len(line[at]) for line in [head, *lines]) for at in range(len(head))]
    return [
        "  ".join(cell.ljust(widths[at]) if at in left else cell.rjust(widths[at]) for at, cell in enumerate(line))
        for line in [head, *lines]
    ]


def p99(row: Row) -> str:
    """The p99, with its range over the repeats."""
    if "p99_us" not in row.ranges:
        return ms(row.p99_us)
    low, high = row.ranges["p99_us"]
    return f"{ms(row.p99_us)} ({ms(low)} to {ms(high)})"


def lost(row: Row) -> str:
    """Ticks lost unannounced."""
    if row.lost is None:
        return NONE
    about = "about " if row.lost_is_estimate and row.lost else ""
    return about + count(row.lost) + (f" ({count(row.lost_tail)} at the end)" if row.lost_tail else "")


def client_cpu(row: Row) -> str:
    """CPU of the load client's busiest thread and of the publisher, marked if they were the bottleneck."""
    feed = f" + {percent(row.feed_cpu_share)} feed" if row.feed_cpu_share is not None else ""
    return percent(row.client_cpu_share) + feed + (f" {DISTORTED_MARK}" if row.client_is_bottleneck else "")


def noise(row: Row) -> str:
    """Share of the machine that others used during the window, marked if it is high."""
    if row.steal_percent is None:
        return NONE
    total = row.steal_percent + (row.others_percent or 0.0)
    return f"{total:.1f} %" + (f" {DISTORTED_MARK}" if total > NOISE_PERCENT_MAX else "")


def per_send(row: Row) -> str:
    """CPU per SEND and its ratio to the bare loop's."""
    if row.cpu_us_per_send is None:
        return NONE
    ratio = row.bare_ratio
    own = f"{row.cpu_us_per_send:.2f} us at {row.bytes_per_send or 0:,.0f} B"
    return own + (f", {ratio:.2f}x bare at {row.bare_bytes_per_send or 0:,.0f} B" if ratio is not None else "")


def payload_rate(row: Row) -> str:
    """Payload MB/s, and MB/s on the wire as a share of the bare loop's."""
    text = number(row.payload_mb_per_s, ",.1f")
    return text + (f" ({row.bare_rate_share:.0%} of bare)" if row.bare_rate_share is not None else "")


def latency_ratio(row: Row) -> str:
    """Latencies as multiples of the bare loop's, which ran next with the same sizes and rate."""
    quotients = [(row.p50_us, row.bare_p50_us), (row.p99_us, row.bare_p99_us)]
    if any(not own or not bare for own, bare in quotients):
        return NONE
    return ", ".join(f"{own / bare:.2f}x" for own, bare in quotients) + f" ({ms(row.bare_p99_us)})"


# Columns of loads with a constant rate. Columns without any figure are omitted.
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
    ("uncorrected p99 ms", lambda row: ms(row.uncorrected_p99_us)),
    ("skew p99 ms", lambda row: ms(row.skew_p99_us)),
    ("CPU us/delivery", lambda row: number(row.cpu_us_per_delivery, ".3f")),
    ("server CPU", lambda row: percent(row.server_cpu_share)),
    ("RSS MiB", lambda row: mib(row.server_rss_bytes)),
    ("client CPU", client_cpu),
    ("payload MB/s", payload_rate),
    ("CPU per SEND", per_send),
    ("p50, p99 vs bare", latency_ratio),
    ("noise", noise),
)
SATURATION_COLUMNS = (
    ("highest clean step/s", lambda row: count(row.clean_per_s)),
    ("most delivered/s at any step", lambda row: count(row.most_per_s)),
    ("unthrottled delivered/s", lambda row: count(row.unthrottled_per_s)),
    ("unthrottled lost", lambda row: count(row.unthrottled_lost)),
    ("unthrottled announced", lambda row: count(row.unthrottled_announced)),
    ("unthrottled CPU us/delivery", lambda row: number(row.unthrottled_cpu_us_per_delivery, ".3f")),
    *CONSTANT_COLUMNS[1:],
)
IDLE_COLUMNS = (
    ("RSS per connection, bytes", lambda row: count(row.rss_bytes_per_connection)),
    ("RSS MiB", lambda row: mib(row.server_rss_bytes)),
    ("server CPU", lambda row: NONE if row.server_cpu_share is None else f"{row.server_cpu_share:.2%}"),
    ("closed", lambda row: count(row.ended)),
    ("noise", noise),
)
SPIKE_COLUMNS = (
    ("first tick p50 ms", lambda row: ms(row.subscription_p50_us)),
    ("first tick p99 ms", lambda row: ms(row.subscription_p99_us)),
    ("connect to first tick p99 ms", lambda row: ms(row.connect_p99_us)),
    ("p99 from first connect ms", lambda row: ms(row.spike_p99_us)),
    *CONSTANT_COLUMNS,
)
DEFLATE_COLUMNS = (
    ("wire bytes/delivery", lambda row: number(row.wire_bytes_per_delivery, ",.1f")),
    *CONSTANT_COLUMNS,
)
# The terminal shows these columns of a load; the report shows all.
TERMINAL_COLUMNS = {
    "highest clean step/s", "unthrottled delivered/s", "RSS per connection, bytes", "delivered/s", "lost", "announced",
    "closed", "p50 ms", "p99 ms", "p99.9 ms", "CPU us/delivery", "server CPU", "RSS MiB", "wire bytes/delivery",
}


def columns_of(load: Load):
    """Columns of a load's table."""
    if load.name == "spike":
        return SPIKE_COLUMNS
    if load.capture:
        return DEFLATE_COLUMNS
    return {"saturation": SATURATION_COLUMNS, "idle": IDLE_COLUMNS}.get(load.kind, CONSTANT_COLUMNS)


def load_cells(columns, rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of a load's table, one line per system. Omits columns without any figure."""
    measured = [row for row in rows if not row.failed]
    used = [(name, of) for name, of in columns if any(of(row) != NONE for row in measured)]
    used = used or [("result", lambda _row: NONE)]
    lines = [
        [row.name, *(("failed" if at == 0 else NONE) if row.failed else of(row) for at, (_, of) in enumerate(used))]
        for row in rows
    ]
    return ["system", *(name for name, _ in used)], lines


def load_section(load: Load, rows: list[Row], pictures: list[str], started: str = "") -> list[str]:
    """A load with its table, notes, published figures, plot and commands."""
    runs = max(row.runs for row in rows)
    when = f"Measured {started}" + (f"; medians of {runs} runs, p99 with its range" if runs > 1 else "") + "."
    lines = [f"### {load.title}", "", *([when, ""] if started else [])]
    lines += [*table(*load_cells(columns_of(load), rows)), ""]
    notes = [load.note] if load.note else []
    for row in rows:
        if row.failed:
            notes.append(f"{row.name}: {row.failed}.")
        notes += [f"{row.name}: {note}." for note in row.notes]
    lines += [f"- {note}" for note in notes] + ([""] if notes else [])
    known = published.of_load(load.name)
    lines += [f"- For comparison, {one.source}: {one.text}." for one in known] + ([""] if known else [])
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
    """Hardware, kernel, settings and versions."""
    machine = result["machine"]
    virtual = ", a virtual machine" if machine["hypervisor"] else ""
    return [
        "## Machine",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB{virtual}; Linux {machine['kernel']}. "
        f"Commit {machine['commit']}, {result['started']}. Steal (CPU time the host gave to other machines) over the "
        f"whole run: {result['steal_percent']:.2f} %.",
        "",
        "On another machine, only the ratios hold. "
        + "; ".join(machine["versions"].values()) + ".",
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


def intro(result: dict) -> list[str]:
    """How the figures were measured, and what the columns mean."""
    command = shlex.join(["bench/run", *result.get("arguments", [])])
    runs = result["repeat"]
    shown = f"the median by p99 of {runs} runs, with the range of p99" if runs > 1 else "measured once"
    return [
        "# Benchmark results",
        "",
        f"Generated by `{command}`; do not edit. See `bench/run --help` for other runs.",
        "",
        f"Each row is a window of {result['window_s']} s after {result['warm_up_s']} s of warm-up, {shown} unless its "
        "section says otherwise. Under each load, the systems run one after the other. The server has core 0; the load "
        "client and the external publisher share core 1; everything runs over loopback. Producers are open-loop: they "
        "keep their rate even if the server falls behind. NATS and Redis are measured in their own protocols; over "
        "WebSockets: Nchan, the hub (the case study's design in Go), and Bun, whose WebSocket server is uWebSockets.",
        "",
        "- **simulator**: the server generates the ticks itself, as the hub and Bun do. **network**: `tickcast-feed` "
        "publishes them, as for the other peers. **capture**: the server replays a file.",
        "- **offered**: producers' rate times clients. A delivery is one tick received by one client.",
        "- **lost**: deliveries still missing two seconds after the window and never announced, though another client "
        "received the tick. **announced**: losses that the server reported to the client (conflated or dropped). Both "
        "count from the subscription. A system that is merely late loses nothing, but *delivered* falls short.",
        "- **refused**: ticks the server did not accept, for lack of space or permission. They have no sequence number.",
        "- **latency** is corrected: it runs from the time a tick was due to be sent to the client's read. "
        "**Uncorrected** latency starts when the server received the tick. **Skew** is the time between the first and "
        "the last client that receives a tick.",
        "- **CPU**: user and system time of all server processes. The kernel counts it in steps of 10 ms.",
        "- **CPU per SEND** is compared with the bare loop (`tickcast-bare`), which SENDs the same bytes in the same "
        "sizes and as often to as many sockets, without a broker. **p50, p99 vs bare** are multiples of the bare loop's "
        "latency (its p99 in brackets), which runs from the time a round was due. That is the latency of machine and "
        "kernel alone: the bare loop's ticks never wait, tickcast's wait for a SEND in flight or for the latency budget.",
        "- **noise**: CPU time that the host or other processes took during the window.",
        f"- {DISTORTED_MARK} marks distorted rows: the load client and the publisher used more than 85 % of their core, "
        f"so rate and latency are limited by them, or noise was above {NOISE_PERCENT_MAX:.0f} %.",
        "",
    ]


def targets_section(verdicts: list[judge.Verdict]) -> list[str]:
    """Targets and whether they are met."""
    outcome = {True: "met", False: "**missed**", None: "not measured"}
    lines = [[one.load, one.target, NONE if one.met is None else one.measured, outcome[one.met]] for one in verdicts]
    profiles = (
        "The [profiles](profiles), recorded by `bench/profile`, show where the server spends its time, and thus why it "
        "misses a target."
    )
    return ["## Targets", "", *table(["load", "target", "measured", ""], lines), "", profiles, ""]


def losses_section(rows: dict[str, list[Row]]) -> list[str]:
    """Columns in which a peer is better: those beyond noise, and the others in a fold."""
    found = {name: judge.losses(of_load) for name, of_load in rows.items()}
    beyond = losses_by_load(found, is_beyond_noise=True)
    within = losses_by_load(found, is_beyond_noise=False)
    if not beyond and not any(not row.is_tickcast and not row.failed for of_load in rows.values() for row in of_load):
        return ["## Where we lose", "", "No peer was measured.", ""]
    lines = [
        "## Where we lose",
        "",
        f"Figures in which tickcast is more than {judge.NOISE_SHARE:.0%} worse than a peer, by more than the measurement "
        "can resolve, and with repeats that do not overlap the peer's. A figure measured once has no repeats; the other "
        "two rules still apply.",
        "",
        *(beyond or ["None.", ""]),
    ]
    if within:
        number_within = sum(not loss.is_beyond_noise for of_load in found.values() for loss in of_load)
        lines += [
            f"<details><summary>Within noise ({number_within}): further figures in which a peer is ahead</summary>",
            "",
            *within,
            "</details>",
            "",
        ]
    return lines


def losses_by_load(losses: dict[str, list[judge.Loss]], is_beyond_noise: bool) -> list[str]:
    """The losses on one side of the noise, as a list per load."""
    lines = []
    for name, of_load in losses.items():
        sentences = [loss.sentence for loss in of_load if loss.is_beyond_noise is is_beyond_noise]
        if sentences:
            lines += [f"**{name}**", "", *(f"- {sentence}" for sentence in sentences), ""]
    return lines


def rows_by_load(result: dict) -> dict[str, list[Row]]:
    """The rows of a result by the name of their load."""
    return {one["name"]: [Row.from_json(row) for row in one["rows"]] for one in result["loads"]}


def markdown(result: dict, pictures: list[str]) -> str:
    """The whole report. `pictures` are the names of the plots beside it."""
    rows = rows_by_load(result)
    known = {load.name: load for load in loads.LOADS}
    starts = {one["name"]: one.get("started", "") for one in result["loads"]}
    lines = [*intro(result), *machine_section(result), *targets_section(judge.verdicts(rows)), *losses_section(rows)]
    lines += ["## Loads", ""]
    for name, of_load in rows.items():
        if name in known:
            lines += load_section(known[name], of_load, pictures, starts.get(name, ""))
    return "\n".join(lines).rstrip() + "\n"


def terminal(result: dict) -> str:
    """The main columns of every load, for the terminal."""
    known = {load.name: load for load in loads.LOADS}
    lines: list[str] = []
    for name, of_load in rows_by_load(result).items():
        if name not in known:
            continue
        columns = [column for column in columns_of(known[name]) if column[0] in TERMINAL_COLUMNS]
        lines += ["", known[name].title, "", *aligned(*load_cells(columns, of_load))]
        lines += [f"{row.name}: {row.failed}" for row in of_load if row.failed]
    return "\n".join(lines).lstrip("\n")
