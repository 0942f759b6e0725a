"""The command `sglang`, also as `python -m sglang`: each of its words is a module that `python -m` runs as well.

Nothing is imported before it is known which is wanted, so help and mistakes cost no more than there.
"""

import importlib
import sys
from collections.abc import Callable

from sglang.version import __version__

WRONG_USE = 2
Run = Callable[[list[str], str], int]  # of the words after the command, and of the words up to it; the exit code


def module(name: str) -> Run:
    """The `main(argv, prog)` of a module."""
    return lambda argv, prog: importlib.import_module(name).main(argv, prog) or 0


def serve(argv: list[str], prog: str) -> int:
    from sglang.launch_server import main

    main(argv, prog, model_first=True)


def one_batch(argv: list[str], prog: str) -> int:
    from sglang.bench_one_batch import main
    from sglang.srt.utils.child import run_and_leave

    run_and_leave(lambda: main(argv, prog))


def bench(argv: list[str], prog: str) -> int:
    return choose(argv, prog, "Measure a server, or the engine by itself.", BENCHES)


def version(argv: list[str], prog: str) -> int:
    if argv not in ([], ["-h"], ["--help"]):
        return wrong(f"{prog} takes nothing more, got {argv[0]!r}")
    print(f"sglang version: {__version__}")
    return 0


BENCHES: dict[str, tuple[str, Run]] = {
    "serving": ("a running server under load: throughput, latencies, failures", module("sglang.bench_serving")),
    "one-batch": ("one static batch without a server", one_batch),
    "offline-throughput": ("many prompts through the in-process engine", module("sglang.bench_offline_throughput")),
}
COMMANDS: dict[str, tuple[str, Run]] = {
    "serve": ("serve a model over HTTP", serve),
    "bench": (f"measure: {', '.join(BENCHES)}", bench),
    "check-env": ("what matters of this machine: packages, GPUs, memory", module("sglang.check_env")),
    "version": ("the version", version),
}


def choose(argv: list[str], prog: str, description: str, commands: dict[str, tuple[str, Run]]) -> int:
    """Run the command that the first word names; the other words are its own."""
    if argv[:1] in ([], ["-h"], ["--help"]):
        print(f"usage: {prog} COMMAND [...]\n\n{description}\n")
        for name, (text, _) in commands.items():
            print(f"  {name:<20}{text}")
        print(f"\n`{prog} COMMAND --help` tells more.")
        return 0 if argv else WRONG_USE
    name = argv[0]
    if name not in commands:
        from sglang.srt.arg_fields import nearest

        close = nearest(name.replace("_", "-"), commands)
        hint = f"did you mean {close}?" if close else f"there are {', '.join(commands)}"
        return wrong(f"{prog} has no command {name!r}; {hint}")
    return commands[name][1](argv[1:], f"{prog} {name}")


def wrong(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return WRONG_USE


def main() -> int:
    argv = sys.argv[1:]
    return choose(["version"] if argv == ["--version"] else argv, "sglang", "Serve language models.", COMMANDS)
