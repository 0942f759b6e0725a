"""Which files may import which: one way down the floors, no circles, no torch where scheduling is decided."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sglang
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=5, suite="unit-test-cpu")

ROOT = Path(sglang.__path__[0])
FLOORS = ["ops", "configs", "layers", "models", "model_executor", "managers", "entrypoints"]  # from below
WITHOUT_TORCH = ["managers", "mem_cache"]
LATE = {"managers/step_profiler.py", "managers/trace_writer.py"}  # imported when a profile starts


def imported(nodes: list[ast.stmt], names: dict[str, Path]) -> Iterator[str]:
    """Modules, ours by their whole name, that these statements import, those inside of functions too."""
    for node in (inner for statement in nodes for inner in ast.walk(statement)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in names else node.module


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """Of each module of srt, the ones of srt it imports; for annotations alone, or late, counts too."""
    names = {module_name(path): path for path in (ROOT / "srt").rglob("*.py")}
    return {
        name: set(imported(ast.parse(path.read_text(encoding="utf-8")).body, names)) & names.keys()
        for name, path in names.items()
    }


def floor(name: str) -> str:
    return name.split(".")[2] if name.count(".") > 1 else ""


def test_imports_go_down(graph):
    upward = [
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in others
        if floor(name) in FLOORS and floor(other) in FLOORS and FLOORS.index(floor(other)) > FLOORS.index(floor(name))
    ]
    assert not upward and sum(map(len, graph.values())) > 300


def test_ops_import_utils_alone(graph):
    others = {floor(other) for name, imports in graph.items() if floor(name) == "ops" for other in imports}
    assert others == {"ops", "utils"}


def test_no_circles(graph):
    left = dict(graph)
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert not left, "these import in a circle, or stand above one: " + ", ".join(sorted(left))


def test_scheduling_imports_no_torch():
    """Statements that run when a file is imported; `if TYPE_CHECKING` is none."""
    found = set()
    for path in (path for folder in WITHOUT_TORCH for path in (ROOT / "srt" / folder).rglob("*.py")):
        body = [
            n for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.Import | ast.ImportFrom)
        ]
        if any(name.split(".")[0] == "torch" for name in imported(body, {})):
            found.add(str(path.relative_to(ROOT / "srt")))
    assert found == LATE


def test_a_scheduler_runs_without_torch():
    code = "import sys; sys.modules['torch'] = None; import sglang.test.scheduler_harness"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
