"""Which variants of a kernel are usable, with checks that stand in for kernels."""

import importlib
import multiprocessing
import os
import sys
from pathlib import Path

import pytest

from sglang.test import kernel_variants
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.kernel_variants import usable

sys.path.append(str(Path(__file__).parent))  # a new process finds `check` by this file's own name
register_cpu_ci(est_time=10, suite="base-a-test-cpu")


def check(folder: Path, variant: int) -> float:
    """Variant 2 is wrong, 5 does not compile, 7 breaks its process's device for all that come after it there."""
    print("a whole program")
    (folder / f"{variant}-{os.getpid()}").touch()
    if not kernel_variants.device_works():
        raise RuntimeError("the device is broken")
    if variant == 5:
        raise ValueError("\nin line 1\nfatal: too large\n")
    if variant == 7:
        kernel_variants.device_works = lambda: False
        raise RuntimeError("read where it must not")
    return 1.0 if variant == 2 else 0.001


@pytest.fixture
def importable():
    return importlib.import_module(Path(__file__).stem).check


@pytest.fixture
def torch_imported_once(monkeypatch):
    """Its processes are forked from one that has imported torch; they share nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sglang.test.kernel_variants"])
    monkeypatch.setattr(kernel_variants.multiprocessing, "get_context", {"spawn": context}.__getitem__)


@pytest.mark.usefixtures("torch_imported_once")
def test_usable(importable, tmp_path: Path, capfd):
    variants = [(tmp_path, i) for i in range(11)]
    assert usable(importable, variants, jobs=2) == [v for v in variants if v[1] not in (2, 5, 7)]
    lines = capfd.readouterr().out.splitlines()
    assert [line.split(": ", 1)[1] for line in lines] == [
        "wrong: differs from the reference by 1.0",
        "ValueError: fatal: too large",
        "RuntimeError: read where it must not",
    ]
    tried = [path.name.split("-") for path in tmp_path.iterdir()]
    assert sorted(int(variant) for variant, _ in tried) == list(range(11))  # each once
    process = {int(variant): pid for variant, pid in tried}
    assert process[5] == process[6] == process[7] != process[8] == process[9]


def test_none(importable, capfd):
    assert usable(importable, [], jobs=2) == [] and capfd.readouterr().out == ""


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
