"""How many threads this process gets, and where they stay, on machines made of files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from outpace.config import default_threads
from outpace.cores import cores_to_pin, cpu_quota, usable_cores
from outpace.cores import default_threads as threads_of

V2_MOUNT = "30 25 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n"
V1_MOUNT = "31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"


@pytest.fixture
def machine(tmp_path: Path):
    """Writes files below a root of its own: `machine({path: text})`."""

    def write(files: dict[str, str]) -> Path:
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        return tmp_path

    return write


def siblings(*cores: str, name: str = "thread_siblings_list") -> dict[str, str]:
    """Topology files of cores given as "0,4" """
    return {
        f"sys/devices/system/cpu/cpu{cpu}/topology/{name}": f"{core}\n"
        for core in cores
        for cpu in core.split(",")
    }


@pytest.mark.parametrize("name", ["thread_siblings_list", "core_cpus_list"])
def test_siblings_count_once(machine, name: str) -> None:
    root = machine(siblings("0,4", "1,5", "2,6", "3,7", name=name))
    assert usable_cores(root, range(8)) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert usable_cores(root, {1, 5, 6}) == [[1, 5], [6]]
    assert threads_of(root, range(8)) == 4
    assert threads_of(root, {1, 5, 6}) == 2


def test_without_topology_each_processor_is_a_core(machine) -> None:
    assert usable_cores(machine({}), {3, 9}) == [[3], [9]]


def test_only_whole_cores_with_siblings_are_pinned_to(machine) -> None:
    root = machine(siblings("0,2", "1,3"))
    assert cores_to_pin(2, root, range(4)) == [[0, 2], [1, 3]]
    assert cores_to_pin(1, root, range(4)) == []  # every program would choose the first core
    assert cores_to_pin(4, root, range(4)) == []
    assert cores_to_pin(2, root, {0, 1}) == []  # no siblings in the mask: no choice to make


@pytest.mark.parametrize(
    ("limit", "quota"),
    [
        ("200000 100000", 2.0),
        ("150000 100000", 1.5),
        ("20000 100000", 0.2),
        ("max 100000", None),
        ("", None),
        ("0 0", None),
        ("nonsense", None),
    ],
)
def test_version_2(machine, limit: str, quota: float | None) -> None:
    root = machine(
        {
            "proc/self/cgroup": "0::/user.slice/app\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/user.slice/app/cpu.max": limit + "\n",
        }
    )
    assert cpu_quota(root) == quota


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [("250000", "100000", 2.5), ("-1", "100000", None), ("100000", "0", None)],
)
def test_version_1(machine, quota: str, period: str, expected: float | None) -> None:
    group = "sys/fs/cgroup/cpu,cpuacct/docker/abc"
    root = machine(
        {
            "proc/self/cgroup": "5:memory:/elsewhere\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/x\n",
            "proc/self/mountinfo": V1_MOUNT,
            f"{group}/cpu.cfs_quota_us": quota + "\n",
            f"{group}/cpu.cfs_period_us": period + "\n",
        }
    )
    assert cpu_quota(root) == expected


def test_the_smallest_on_the_way_to_the_root_counts(machine) -> None:
    files = {
        "proc/self/cgroup": "0::/a/b/c\n",
        "proc/self/mountinfo": V2_MOUNT,
        "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
        "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
        "sys/fs/cgroup/a/b/c/cpu.max": "700000 100000\n",
        "sys/fs/cgroup/a/other/cpu.max": "100000 100000\n",
    }
    assert cpu_quota(machine(files)) == 3.0


@pytest.mark.parametrize("top", ["/", "/docker/abc"])
def test_inside_a_container(machine, top: str) -> None:
    """The group's path may be the host's, while its folder is mounted as the root."""
    root = machine(
        {
            "proc/self/cgroup": "0::/docker/abc\n",
            "proc/self/mountinfo": V2_MOUNT.replace(" / ", f" {top} ", 1),
            "sys/fs/cgroup/cpu.max": "100000 100000\n",
        }
    )
    assert cpu_quota(root) == 1.0


def test_a_quota_is_rounded_up_and_never_zero(machine) -> None:
    files = {
        **siblings("0,4", "1,5", "2,6", "3,7"),
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": V2_MOUNT,
    }
    for limit, threads in {"5000": 1, "100000": 1, "100001": 2, "250000": 3, "900000": 4}.items():
        root = machine({**files, "sys/fs/cgroup/cpu.max": f"{limit} 100000\n"})
        assert threads_of(root, range(8)) == threads, limit


def test_no_such_files(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None


# --- this machine ---------------------------------------------------------------------------------


def threads_in_child(before: str = "") -> int:
    code = f"import os\n{before}\nfrom outpace.config import default_threads\nprint(default_threads())"
    return int(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )


def test_a_smaller_mask() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("NOT TESTED: this system has no affinity masks")
    cpu = min(os.sched_getaffinity(0))
    assert threads_in_child(f"os.sched_setaffinity(0, {{{cpu}}})") == 1


@pytest.fixture
def v1_group() -> Iterator[Path]:
    group = Path(f"/sys/fs/cgroup/cpu/outpace-test-{os.getpid()}")
    if not Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").exists() or not os.access(group.parent, os.W_OK):
        pytest.skip("NOT TESTED: there is no writable cgroup v1 cpu controller here")
    group.mkdir()
    (group / "inner").mkdir()
    yield group
    (group / "inner").rmdir()
    group.rmdir()


def test_a_real_quota(v1_group: Path) -> None:
    if default_threads() < 2:
        pytest.skip("NOT TESTED: one core cannot be halved")
    (v1_group / "cpu.cfs_quota_us").write_text("80000")
    (v1_group / "cpu.cfs_period_us").write_text("100000")
    enter = f"open('{v1_group}/inner/cgroup.procs', 'w').write(str(os.getpid()))"
    assert threads_in_child(enter) == 1
    (v1_group / "cpu.cfs_quota_us").write_text("120000")
    assert threads_in_child(enter) == 2
