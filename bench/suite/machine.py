"""The machine that the figures come from: hardware, kernel, settings, versions, and noise during a run."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Kernel settings that affect sockets under these loads.
SYSCTLS = (
    "net.ipv4.tcp_congestion_control",
    "net.core.default_qdisc",
    "net.ipv4.tcp_wmem",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_notsent_lowat",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.core.somaxconn",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.ip_local_port_range",
    "net.core.busy_poll",
    "fs.nr_open",
    "kernel.io_uring_disabled",
)
# How to ask each program for its version.
VERSION_COMMANDS = {
    "nats-server": ["nats-server", "--version"],
    "redis-server": ["redis-server", "--version"],
    "nginx (Nchan)": ["nginx", "-v"],
    "go": ["go", "version"],
    "rustc": ["rustc", "--version"],
    "python": ["python3", "--version"],
}


def read(path: str) -> str:
    """Text of a file, or nothing if it cannot be read."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def output_of(argv: list[str]) -> str:
    """First line that a command prints, on either stream; nothing if it cannot be run."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0].strip() if lines else ""


def cpu_model(cpuinfo: str) -> str:
    """Processor name from /proc/cpuinfo."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def memory_gib(meminfo: str) -> float:
    """Total memory from /proc/meminfo, in GiB."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.MULTILINE)
    return int(found.group(1)) / (1 << 20) if found else 0.0


def facts(repository: Path) -> dict:
    """Facts about the machine and the checkout, constant during a run."""
    git = ["git", "-C", str(repository)]
    commit = output_of([*git, "rev-parse", "--short=12", "HEAD"])
    changed = output_of([*git, "status", "--porcelain", "--untracked-files=no"])
    return {
        "cpu": cpu_model(read("/proc/cpuinfo")),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_gib(read("/proc/meminfo")), 1),
        "kernel": platform.release(),
        "hypervisor": "hypervisor" in read("/proc/cpuinfo"),
        "commit": commit + (" with uncommitted changes" if changed else ""),
        "sysctls": {name: read("/proc/sys/" + name.replace(".", "/")).replace("\t", " ") for name in SYSCTLS},
        "versions": {name: version for name, argv in VERSION_COMMANDS.items() if (version := output_of(argv))},
    }


@dataclass(frozen=True)
class CpuTimes:
    """CPU time of all cores together since boot, from the first line of /proc/stat."""

    busy_s: float
    steal_s: float
    total_s: float

    @staticmethod
    def parse(stat: str, ticks_per_s: int = os.sysconf("SC_CLK_TCK")) -> CpuTimes:
        """Parses /proc/stat (proc(5)): user nice system idle iowait irq softirq steal; user and nice include guests."""
        fields = [int(field) / ticks_per_s for field in stat.splitlines()[0].split()[1:9]]
        user, nice, system, idle, iowait, irq, softirq, steal = fields
        return CpuTimes(
            busy_s=user + nice + system + irq + softirq,
            steal_s=steal,
            total_s=sum(fields),
        )

    @staticmethod
    def now() -> CpuTimes:
        """Current values."""
        return CpuTimes.parse(Path("/proc/stat").read_text())


def noise(before: CpuTimes, after: CpuTimes, own_cpu_s: float) -> dict:
    """CPU time between two readings that the hypervisor stole or other processes used, in percent of all cores.

    `own_cpu_s` is the CPU time of the run's own processes.
    """
    total = max(after.total_s - before.total_s, 1e-9)
    others = max(0.0, after.busy_s - before.busy_s - own_cpu_s)
    return {
        "steal_percent": 100.0 * (after.steal_s - before.steal_s) / total,
        "others_percent": 100.0 * others / total,
    }
