"""What a test file mostly spends its time on, read from its imports: the runner sums times by it.

Must not import anything outside the standard library: the runner starts on machines without torch.
"""

import ast
from functools import cache
from pathlib import Path

from sglang.test.ci.ci_register import UNIT_SUITE

PACKAGE = Path(__file__).resolve().parents[2]  # sglang
COMPILING, INTERPRETER, SERVERS = "compiling", "Triton interpreter", "servers and child processes"
KINDS = {  # the first that a file's imports have part in
    COMPILING: {"sglang.test.triton_compile", "sglang.test.stand_in_gpu"},
    INTERPRETER: {"sglang.test.triton_testing"},
    SERVERS: {"subprocess", "multiprocessing"},
    "engine in process": {"sglang.test.engine_harness", "sglang.test.scheduler_harness"},
    "torch": {"torch"},
}
NO_TORCH, OTHER = "no torch", "torch"  # of the unit suite; what is left, since helpers in the package import it


def kind_of(path: Path, suite: str) -> str:
    """`path`: of a registered test file."""
    if suite == UNIT_SUITE:
        return NO_TORCH
    conftest = path.with_name("conftest.py")
    found = imports(path) | (imports(conftest) if conftest.exists() else set())
    return next((kind for kind, names in KINDS.items() if names & found), OTHER)


@cache
def imports(path: Path) -> frozenset[str]:
    """Names of the modules that a file imports, and of those that they import as far as they are helpers of tests."""
    direct = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            direct |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            direct |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    helpers = [PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py") for name in direct if is_helper(name)]
    return frozenset(direct).union(*(imports(helper) for helper in helpers if helper.exists()))


def is_helper(name: str) -> bool:
    return name.startswith("sglang.test.") and not name.startswith("sglang.test.ci.")
