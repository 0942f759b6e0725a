"""How a child process ends."""

import subprocess
import sys

import pytest

from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=3, suite="unit-test-cpu")


@pytest.mark.parametrize(
    ("main", "code", "error"),
    [("3", 3, ""), ("None", 0, ""), ("sys.exit(2)", 2, ""), ("sys.exit()", 0, ""), ("1 // 0", 1, "ZeroDivisionError")],
)
def test_what_never_ends_is_left_behind(main: str, code: int, error: str):
    """As NCCL's communicators at the end of a process, on whose captured graphs they wait."""
    lines = [
        "import sys, threading, time",
        "from sglang.srt.utils.child import run_and_leave",
        "threading.Thread(target=time.sleep, args=(300,)).start()",
        "print(1, end='')",
        f"run_and_leave(lambda: {main})",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (code, "1")
    assert error in done.stderr and bool(error) == bool(done.stderr)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
