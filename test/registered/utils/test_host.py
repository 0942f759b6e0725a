"""What of the machine the process may use: bounds of control groups, of either version and at any height, count."""

import os
import subprocess
import sys

import pytest

from sglang.srt.utils import host
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=2, suite="unit-test-cpu")

NO_LIMIT_V1 = 9223372036854771712


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """groups(membership, {file: text}): the process is in these control groups, on a machine of 100 cores and 1 TB."""

    def make(membership: str, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        (tmp_path / "own").write_text(membership)
        monkeypatch.setattr(host, "CGROUP", tmp_path / "cgroup")
        monkeypatch.setattr(host, "OWN_CGROUP", tmp_path / "own")
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(100)), raising=False)
        monkeypatch.setattr(host.psutil, "virtual_memory", lambda: type("M", (), {"available": 10**12}))

    return make


@pytest.mark.parametrize(
    "files,cores",
    [
        ({"cpu.max": "max 100000"}, 100),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.max": "max 100000", "pod/cpu.max": "400000 100000", "pod/box/cpu.max": "800000 100000"}, 4),
        ({"cpu.max": "nonsense"}, 100),
        ({}, 100),
    ],
)
def test_cores_version_2(groups, files, cores):
    groups("0::/pod/box\n", files)
    assert host.cores() == cores


@pytest.mark.parametrize("quota,cores", [(-1, 100), (300000, 3)])
def test_cores_version_1(groups, quota, cores):
    groups("4:cpu,cpuacct:/box\n", {"cpu/box/cpu.cfs_quota_us": str(quota), "cpu/box/cpu.cfs_period_us": "100000"})
    assert host.cores() == cores


@pytest.mark.parametrize(
    "membership,files,free",
    [
        ("0::/box\n", {"box/memory.max": "1000", "box/memory.current": "400"}, 600),
        ("0::/box\n", {"box/memory.max": "max", "box/memory.current": "400"}, 10**12),
        (
            "0::/box\n",
            {"box/memory.max": "1000", "box/memory.current": "900", "box/memory.stat": "inactive_file 300"},
            400,
        ),
        ("0::/pod/box\n", {"pod/memory.max": "50", "pod/memory.current": "20", "pod/box/memory.max": "max"}, 30),
        ("0::/box\n", {"box/memory.max": "100", "box/memory.current": "200"}, 0),
        ("0::/elsewhere\n", {"memory.max": "70", "memory.current": "10"}, 60),  # a container sees its own as the root
        ("5:memory:/b\n", {"memory/b/memory.limit_in_bytes": "90", "memory/b/memory.usage_in_bytes": "30"}, 60),
        (
            "5:memory:/b\n",
            {"memory/b/memory.limit_in_bytes": str(NO_LIMIT_V1), "memory/b/memory.usage_in_bytes": "30"},
            10**12,
        ),
    ],
)  # fmt: skip
def test_free_memory(groups, membership, files, free):
    groups(membership, files)
    assert host.free_memory() == free


def test_no_control_groups(monkeypatch, tmp_path):
    monkeypatch.setattr(host, "OWN_CGROUP", tmp_path / "none")
    assert host.cores() >= 1 and host.free_memory() > 0


@pytest.mark.parametrize(
    "env,spins", [({}, host.SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "None")]
)
def test_waiting_is_bounded_unless_the_user_says_otherwise(env, spins):
    script = "import os; from sglang.srt.utils.host import *; bound_spinning(); print(os.environ.get('GOMP_SPINCOUNT'))"
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", script], env=clean | env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == spins


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
