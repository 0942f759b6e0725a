"""Heartbeats: what counts as silence."""

import os
import subprocess
import sys

import pytest

from sglang.srt.utils.heartbeat import Heartbeat, Silence
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=2, suite="unit-test-cpu")


def test_beats_of_another_process_are_seen(tmp_path):
    heart = Heartbeat(str(tmp_path), "a child", create=True)
    assert heart.read() == 0
    program = (
        "import sys; from sglang.srt.utils.heartbeat import Heartbeat\n"
        "heart = Heartbeat(sys.argv[1], 'a child')\n"
        "for _ in range(3): heart.beat()"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    assert heart.read() == 3
    assert os.stat(tmp_path / "a child.beat").st_mode & 0o777 == 0o600
    with pytest.raises(FileNotFoundError):
        Heartbeat(str(tmp_path), "unknown")


def test_silence(tmp_path):
    heart = Heartbeat(str(tmp_path), "c", create=True)
    silence = Silence(heart)
    for _ in range(100):  # it has not begun
        silence.look(0.25)
    assert silence.seconds == 0
    heart.beat()
    silence.look(0.25)
    for _ in range(8):
        silence.look(0.25)
    assert silence.seconds == 2.0
    silence.look(1000.0)  # the watcher stood still itself
    assert silence.seconds == 3.0
    heart.beat()
    silence.look(0.25)
    assert silence.seconds == 0


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
