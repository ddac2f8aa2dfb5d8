"""Which processors this process may use: its affinity, one for each physical core, and its CPU quota.

Every function takes the root of the file system, so that a test can show it another machine.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def usable_cores(root: Path = ROOT, affinity: Iterable[int] | None = None) -> list[list[int]]:
    """The processors of the affinity mask, those that share a physical core together.

    `affinity` is the mask; None: this process's own, or every processor where the system has no masks.
    """
    cores: dict[str, list[int]] = {}
    for cpu in sorted(_affinity() if affinity is None else affinity):
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        siblings = _text(topology / "core_cpus_list") or _text(topology / "thread_siblings_list")
        cores.setdefault(siblings or f"cpu {cpu}", []).append(cpu)
    return list(cores.values())


def default_threads(root: Path = ROOT, affinity: Iterable[int] | None = None) -> int:
    """Threads that this process can keep busy: one for each physical core, fewer where its quota is less.

    Half a core of quota is a thread too: the quota is rounded up.
    """
    cores, quota = len(usable_cores(root, affinity)), cpu_quota(root)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cores_to_pin(
    num_threads: int, root: Path = ROOT, affinity: Iterable[int] | None = None
) -> list[list[int]]:
    """The core that each thread is to stay on; none where pinning would not help.

    It helps where a core is several processors, as two threads on one of them are slow: each gets a core's
    processors, so that it can still evade another program. Fewer threads than cores are not pinned, as every
    such program would choose the same cores, nor are threads without siblings: see LABLOG.md.
    """
    cores = usable_cores(root, affinity)
    siblings = any(len(core) > 1 for core in cores)
    return cores if siblings and num_threads == len(cores) else []


def cpu_quota(root: Path = ROOT) -> float | None:
    """Processors' worth of time that the control groups of this process grant it; None: no limit.

    A group's limit binds all groups below it, so the smallest on the way to the root counts.
    """
    quotas = [quota for folder in _cpu_groups(root) if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def processor_name(root: Path = ROOT) -> str:
    """What the processor calls itself, and its architecture."""
    for line in _text(root / "proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()} {os.uname().machine}"
    return os.uname().machine


def _affinity() -> Iterable[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def _cpu_groups(root: Path) -> Iterator[Path]:
    """The folders of the process's groups, of version 2 and of version 1's cpu controller, up to the root."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = PurePosixPath(path.lstrip("/"))
        for mount, top in _mounts(root, version=1 if controllers else 2):
            # Inside a container the path may be one of the host's, above or beside what is mounted there.
            below = group.relative_to(top) if group.is_relative_to(top) else group
            for folder in (below, *below.parents):
                yield mount / folder


def _mounts(root: Path, version: int) -> Iterator[tuple[Path, PurePosixPath]]:
    """Where the hierarchy with the cpu controller is mounted, and which of its groups is on top there."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        v1 = kind == "cgroup" and "cpu" in options.split()[-1].split(",")
        if v1 if version == 1 else kind == "cgroup2":
            top, mount = before.split()[3:5]
            yield root / mount.lstrip("/"), PurePosixPath(top.lstrip("/"))


def _quota(folder: Path) -> float | None:
    limit = _text(folder / "cpu.max").split()
    if not limit:
        limit = [_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    if len(limit) == 2 and all(number.isdigit() for number in limit) and int(limit[1]) > 0:
        return int(limit[0]) / int(limit[1])
    return None  # "max", -1, or no such file


def _text(path: Path) -> str:
    """A small system file's text; nothing where this system has no such file."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
