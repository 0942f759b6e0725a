"""How a server of two ranks ends or does not start: a lost rank, on one machine or two, and sizes that do not fit.

Each start is two schedulers. Left to the weekly run: rank 0 killed on one machine, which is the scheduler that a server
of one rank loses (test_server_end.py), and a second way of losing rank 1 on two.
"""

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import psutil
import pytest

from sglang.srt.managers import join_ranks
from sglang.srt.utils.child import ProcessConfig
from sglang.test.ci.ci_register import is_weekly, register_cpu_ci
from sglang.test.server_process import ServerProcess, children_of, free_port, wait_for

register_cpu_ci(est_time=25, suite="base-a-test-cpu")
register_cpu_ci(est_time=80, suite="weekly-test-cpu")

MODULE = "sglang.launch_server"
FLAGS = ["--device", "cpu", "--max-total-tokens", "4096"]
RANKS = [(0, "scheduler"), (1, "scheduler rank 1")]
BODY = {"text": "One and one is", "sampling_params": {"temperature": 0, "max_new_tokens": 4}}


@pytest.fixture(autouse=True, scope="module")
def one_machine():
    """One thread a rank, and loopback for what would go between machines."""
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")
    patch.setenv("GLOO_SOCKET_IFNAME", "lo")
    yield
    patch.undo()


def schedulers(process) -> list[psutil.Process]:
    """By rank."""
    found = [c for c in children_of(process.pid) if c.cmdline()[-1].endswith("run_scheduler")]
    return sorted(found, key=lambda child: (child.create_time(), child.pid))


@pytest.mark.parametrize(("rank", "name"), RANKS if is_weekly() else RANKS[1:])
def test_a_dead_rank_ends_the_server(rank, name):
    with ServerProcess(MODULE, *FLAGS, "--tp-size", "2") as server:
        children = children_of(server.process.pid)
        os.kill(schedulers(server.process)[rank].pid, signal.SIGKILL)
        started = time.monotonic()
        assert server.process.wait(10) == 1
        assert time.monotonic() - started < 5
        assert f"the {name} process was killed by SIGKILL" in server.output()
        assert not any(child.is_running() and child.status() != "zombie" for child in children)


@pytest.mark.parametrize(("rank", "name"), RANKS)
def test_a_stopped_rank_ends_the_server(rank, name):
    with ServerProcess(MODULE, *FLAGS, "--tp-size", "2", "--watchdog-timeout", "8") as server:
        assert len(server.client.post("/generate", json=BODY).json()["output_ids"]) > 1
        os.kill(schedulers(server.process)[rank].pid, signal.SIGSTOP)
        wait_for(lambda: server.client.get("/health").status_code == 503, 20)
        assert server.process.wait(30) == 1
        assert f"{name} (stopped)" in server.output()


@pytest.mark.parametrize(("victim", "busy"), [(0, True), (1, False), *([(1, True)] if is_weekly() else [])])
def test_two_nodes(victim, busy):
    nodes = ["--tp-size", "2", "--nnodes", "2", "--dist-init-addr", f"127.0.0.1:{free_port()}"]
    worker = ServerProcess(MODULE, *FLAGS, *nodes, "--node-rank", "1")
    try:
        with (
            ThreadPoolExecutor(1) as pool,
            ServerProcess(MODULE, *FLAGS, *nodes, "--node-rank", "0") as server,
        ):
            assert len(schedulers(server.process)) == len(schedulers(worker.process)) == 1
            assert len(server.client.post("/generate", json=BODY).json()["output_ids"]) > 1
            if busy:
                long = {"max_new_tokens": 2000, "ignore_eos": True}
                body = {"text": "a", "sampling_params": long}
                pool.submit(server.client.post, "/generate", json=body)
                wait_for(lambda: server.internal_state()["num_running_reqs"] == 1)
            # whichever node ends, the other learns it, also when nothing runs
            lost, left = (server, worker) if victim == 0 else (worker, server)
            os.kill(schedulers(lost.process)[0].pid, signal.SIGKILL)
            started = time.monotonic()
            assert lost.process.wait(10) == 1
            assert left.process.wait(10) == 1
            assert time.monotonic() - started < 5
            assert f"rank {1 - victim} of 2 has lost" in left.output()
    finally:
        worker.stop()


def test_a_node_without_http_ends_on_a_signal():
    nodes = ["--tp-size", "2", "--nnodes", "2", "--dist-init-addr", f"127.0.0.1:{free_port()}"]
    worker = ServerProcess(MODULE, *FLAGS, *nodes, "--node-rank", "1")
    wait_for(lambda: schedulers(worker.process), 10)
    assert worker.stop() == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--tp-size", "3"], "--tp-size 3 does not divide"),
        (["--tp-size", "2", "--nnodes", "2"], "--nnodes 2 needs --dist-init-addr HOST:PORT"),
        (["--tp-size", "3", "--nnodes", "2"], "--nnodes 2 does not divide --tp-size 3"),
        (["--tp-size", "2", "--nnodes", "2", "--node-rank", "2"], "--node-rank 2: with --nnodes 2 it must be"),
    ],
)
def test_refused_at_start_in_one_line(flags, says):
    server = ServerProcess(MODULE, *FLAGS, *flags)
    assert server.process.wait(120) == 2
    errors = [line for line in server.output().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert says in errors[0]
    assert "Traceback" not in server.output()


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    args = SimpleNamespace(tp_size=4, nnodes=2, node_rank=1)
    with pytest.raises(ValueError, match="--tp-size 4 needs 2 GPUs on this machine, which has 1"):
        join_ranks.join(args, ProcessConfig({}, "", tp_rank=2), "cuda")


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
