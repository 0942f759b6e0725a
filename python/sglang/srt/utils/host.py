"""What of this machine the process may use, cores and memory: bounds of a container's control groups count."""

import math
import os
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
SPINS = "1000"  # rounds of waiting: on a quiet machine steps are within 6 % of those with libgomp's 300,000


def cores() -> int:
    """Cores' worth of computing that the process may have."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, _cpu_quota())))


def bound_spinning() -> None:
    """Let OpenMP's threads wait for each other only briefly before they give their core away. By itself it is 3 ms,
    each time that another program has a core that one needs: steps of 14 ms took 660 on a busy machine, with this 30.
    Works before torch is loaded; what the user has set stays."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def free_memory() -> int:
    """Bytes that the process may still take before something is swapped out or killed. What the system keeps of files
    only because nobody needs the memory counts as free."""
    return max(0, min([psutil.virtual_memory().available, *_room_in_cgroups()]))


def _cgroups(controller: str) -> list[Path]:
    """Folders of the process's control group and those around it: each may have a bound. Version 2 has one tree,
    version 1 one for each controller."""
    try:
        lines = OWN_CGROUP.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUP / controller if controllers else CGROUP
        own = root / path.strip("/")
        found += [own, *(p for p in own.parents if p.is_relative_to(root))]
    return [folder for folder in dict.fromkeys(found) if folder.is_dir()]


def _numbers(file: Path) -> list[float]:
    """The file's words as numbers, `max` as infinity; none where it is not there."""
    try:
        return [math.inf if word == "max" else float(word) for word in file.read_text().split()]
    except (OSError, ValueError):
        return []


def _cpu_quota() -> float:
    """Seconds of computing that the tightest group allows in a second."""
    quotas = [math.inf]
    for folder in _cgroups("cpu"):
        match _numbers(folder / "cpu.max") or [
            *_numbers(folder / "cpu.cfs_quota_us"),
            *_numbers(folder / "cpu.cfs_period_us"),
        ]:
            case [quota, period] if quota > 0 and period > 0:
                quotas.append(quota / period)
    return min(quotas)


def _room_in_cgroups() -> list[int]:
    found = []
    for folder in _cgroups("memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            match [*_numbers(folder / limit), *_numbers(folder / used)]:
                case [most, now] if most < 2**62:  # version 1 writes a number of this size for no limit
                    found.append(int(most - now) + _reclaimable(folder))
    return found


def _reclaimable(folder: Path) -> int:
    """Bytes of files the group has in memory, which are counted as used."""
    try:
        lines = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(lines.get("inactive_file", lines.get("total_inactive_file", 0)))
