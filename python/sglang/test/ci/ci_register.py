"""CI registration: a test file names its suites by top-level calls, and the runner reads them without running the file.

    register_cpu_ci(est_time=5, suite="base-a-test-cpu")
    register_cuda_ci(est_time=720, stage="extra-a", runner_config="2-gpu-large", disabled="waits for a fix")

The calls do nothing at run time. `parse()` reads their arguments from the syntax tree, so they must be literals.
Must not import anything outside the standard library: the runner starts on machines without torch.
"""

import ast
import dataclasses
import inspect
import os
from pathlib import Path


def register_cpu_ci(
    est_time: float,  # seconds on the suite's runner; orders and balances shards
    suite: str | None = None,
    nightly: bool = False,
    disabled: str | None = None,  # the reason; the file is listed, not run
    *,
    stage: str | None = None,  # with runner_config, in place of suite: "<stage>-test-<runner_config>"
    runner_config: str | None = None,
    mostly_waits: bool = False,  # asleep for most of its time: it runs beside --jobs others
) -> None:
    pass


register_cuda_ci = register_amd_ci = register_npu_ci = register_xpu_ci = register_cpu_ci
register_musa_ci = register_mlx_ci = register_ppu_ci = register_mps_ci = register_cpu_ci

BACKENDS = ("cpu", "cuda", "amd", "npu", "xpu", "musa", "mlx", "ppu", "mps")
_CALLS = {f"register_{backend}_ci": backend for backend in BACKENDS}
_SIGNATURE = inspect.signature(register_cpu_ci)
_TYPES = {
    "est_time": (int, float),
    "suite": (str, type(None)),
    "nightly": (bool,),
    "disabled": (str, type(None)),
    "stage": (str, type(None)),
    "runner_config": (str, type(None)),
    "mostly_waits": (bool,),
}


def _join(stage: str, *runners: str) -> list[str]:
    return [f"{stage}-{runner}" for runner in runners]


UNIT_SUITE = "unit-test-cpu"  # files that never import torch: a developer runs them on each save
WEEKLY_SUITE = "weekly-test-cpu"  # other GPUs than Hopper's, and repetitions; only runs when it is named


def is_weekly() -> bool:
    """The weekly suite is running: files have all their cases then, not the ones alone that show each fault."""
    return os.environ.get("SGLANG_TEST_WEEKLY") == "1"


# Suites a registration may name, in the order they run. Backends that are not here take any name.
KNOWN_SUITES: dict[str, list[str]] = {
    "cpu": [UNIT_SUITE, *_join("base", "a-test-cpu", "b-test-cpu", "c-test-cpu", "b-test-cpu-arm64"), WEEKLY_SUITE],
    "cuda": [
        "base-a-test-1-gpu-small",
        *_join("base-b-test", "1-gpu-small", "1-gpu-large", "2-gpu-large", "4-gpu-b200"),
        *_join("base-b-kernel-unit-test", "1-gpu-large", "4-gpu-b200", "8-gpu-h200"),
        "base-b-kernel-benchmark-test-1-gpu-large",
        *_join("base-c-test", "4-gpu-h100", "4-gpu-b200", "4-gpu-gb300", "8-gpu-h20", "8-gpu-h200", "8-gpu-b200"),
        *_join("base-c-test-deepep", "4-gpu-h100", "8-gpu-h200"),
        *_join("extra-a-test", "1-gpu-small", "1-gpu-large", "2-gpu-large"),
        *_join("extra-b-test", "4-gpu-h100", "4-gpu-b200", "8-gpu-h200", "deepep-4-gpu-h100", "deepep-8-gpu-h200"),
        *_join("nightly", "1-gpu", "2-gpu", "4-gpu", "8-gpu", "kernel-1-gpu"),
        *_join("nightly-eval", "text-2-gpu", "vlm-2-gpu"),
        *_join("nightly-perf", "text-2-gpu", "vlm-2-gpu"),
        "stress",
        "weekly-8-gpu-h200",
    ],
}


class RegistrationError(ValueError):
    """A registration the runner cannot use; the message starts with path:line."""


@dataclasses.dataclass(frozen=True)
class CIRecord:
    """One registration of one file."""

    path: Path
    backend: str
    suite: str
    est_time: float  # seconds
    nightly: bool
    disabled: str | None
    mostly_waits: bool = False


def parse(path: Path | str) -> list[CIRecord]:
    """The registrations of a test file, in order. Raises RegistrationError, or SyntaxError for a broken file."""
    path = Path(path)
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    top_level = {id(node.value) for node in tree.body if isinstance(node, ast.Expr)}
    records = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (backend := _CALLS.get(_called_name(node))):
            if id(node) not in top_level:
                raise RegistrationError(f"{path}:{node.lineno}: a registration must stand at the top level")
            records.append(_read_call(path, node, backend))
    if not records:
        raise RegistrationError(f"{path}:1: no registration; add e.g. register_cpu_ci(est_time=5, suite=...)")
    if any(r.disabled is None for r in records) and not any(_is_main_block(node) for node in tree.body):
        raise RegistrationError(
            f'{path}:1: no `if __name__ == "__main__":` block that calls something; the runner executes the file'
        )
    return records


def _called_name(call: ast.Call) -> str:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _read_call(path: Path, call: ast.Call, backend: str) -> CIRecord:
    def fail(message: str):
        raise RegistrationError(f"{path}:{call.lineno}: {message}")

    def literal(node: ast.expr):
        try:
            return ast.literal_eval(node)
        except ValueError:
            fail(f"`{ast.unparse(node)}` is not a literal; registrations are read, not run")

    if any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords):
        fail("* and ** arguments are not literals; registrations are read, not run")
    try:
        bound = _SIGNATURE.bind(*map(literal, call.args), **{k.arg: literal(k.value) for k in call.keywords})
    except TypeError as e:
        fail(f"{_called_name(call)}: {e}")
    bound.apply_defaults()
    got = bound.arguments
    for name, value in got.items():
        if not isinstance(value, _TYPES[name]) or (name == "est_time" and isinstance(value, bool)):
            fail(f"{name}={value!r} has the wrong type")
    if got["est_time"] <= 0:
        fail(f"est_time={got['est_time']!r} must be more than 0 seconds")
    if got["disabled"] is not None and not got["disabled"].strip():
        fail("disabled needs a reason")
    by_parts = got["stage"] is not None and got["runner_config"] is not None
    if by_parts == (got["suite"] is not None) or (got["stage"] is None) != (got["runner_config"] is None):
        fail("give either suite, or stage together with runner_config")
    suite = f"{got['stage']}-test-{got['runner_config']}" if by_parts else got["suite"]
    if backend in KNOWN_SUITES and suite not in KNOWN_SUITES[backend]:
        fail(f"unknown {backend} suite {suite!r}; known: {', '.join(KNOWN_SUITES[backend])}")
    est_time = float(got["est_time"])
    return CIRecord(path, backend, suite, est_time, got["nightly"], got["disabled"], got["mostly_waits"])


def _is_main_block(node: ast.stmt) -> bool:
    if not isinstance(node, ast.If) or not isinstance(node.test, ast.Compare):
        return False
    sides = {ast.unparse(node.test.left), *map(ast.unparse, node.test.comparators)}
    calls = any(isinstance(n, ast.Call) for statement in node.body for n in ast.walk(statement))
    return sides == {"__name__", "'__main__'"} and isinstance(node.test.ops[0], ast.Eq) and calls
