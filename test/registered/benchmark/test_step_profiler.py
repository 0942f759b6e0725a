"""StepProfiler, through the scheduler's messages: which steps are in which trace, when it ends, where it may write."""

import gzip
import json
import os
import sys
import threading

import pytest
import torch

from sglang.srt.managers import step_profiler
from sglang.srt.managers.io_struct import (
    InternalStateReply,
    InternalStateReq,
    ProfileReply,
    ProfileSettings,
    StartProfileReq,
    StopProfileReq,
)
from sglang.srt.managers.step_profiler import MAX_PROFILE_STEPS, profile_folder
from sglang.srt.managers.trace_writer import TraceWriter
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.fake_worker import NullWorker
from sglang.test.scheduler_harness import Harness

register_cpu_ci(est_time=15, suite="base-a-test-cpu")


class OpWorker(NullWorker):
    """Does sin for a step with prompt tokens and cos for one without."""

    def submit(self, step):
        (torch.sin if step.num_extends else torch.cos)(torch.ones(3))
        return super().submit(step)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SGLANG_TORCH_PROFILER_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def h(root) -> Harness:
    return Harness(worker=OpWorker())


def tell(h: Harness, message):
    """Hand the scheduler a control message; its reply, once the traces of a profile that has ended are written."""
    written(h)
    h.inbox.append(message)
    h.step()
    written(h)
    h.scheduler.answer_waiting()
    return h.other.pop()


def written(h: Harness) -> None:
    if h.scheduler.profiler is not None and not h.scheduler.profiler.recording:
        h.scheduler.profiler.wait()


def start(h: Harness, **settings) -> ProfileReply:
    return tell(h, StartProfileReq("id", ProfileSettings(**settings)))


def state(h: Harness) -> dict:
    return tell(h, InternalStateReq("id")).state["profile"]


def events(path: str) -> list[dict]:
    return json.loads(gzip.decompress(open(path, "rb").read()))["traceEvents"]


def ops(path: str) -> list[str]:
    return [e["name"] for e in events(path) if e.get("name") in ("aten::sin", "aten::cos")]


def serve(h: Harness, requests: int, tokens: int) -> None:
    for _ in range(requests):
        number = len(h.received)
        h.add(f"r{number}", [5, 6, 7 + number], tokens)
        h.run()


def test_nothing_is_profiled_unless_asked(h, root):
    assert state(h) is None
    serve(h, 1, 3)
    assert os.listdir(root) == []


def test_ends_itself_after_num_steps(h, root):
    before = h.scheduler.worker
    reply = start(h, num_steps=3)
    assert reply.error == ""
    assert reply.profile["running"]
    serve(h, 1, 6)
    profile = state(h)
    assert (profile["running"], profile["steps"], profile["error"]) == (False, {"ALL": 3}, "")
    assert h.scheduler.worker is before
    [path] = profile["files"]
    assert path == f"{root}/{reply.profile['profile_id']}-TP-0.trace.json.gz"
    assert ops(path) == ["aten::sin", "aten::cos", "aten::cos"]
    assert os.listdir(root) == [os.path.basename(path)]  # no temporary file is left


def test_by_stage_joins_the_sessions_of_a_stage(h, root):
    reply = start(h, num_steps=3, profile_by_stage=True, profile_prefix="mine", output_dir="below/here")
    serve(h, 4, 3)  # sin cos cos sin cos cos sin ...
    profile = state(h)
    assert (profile["running"], profile["steps"]) == (False, {"EXTEND": 3, "DECODE": 3})
    stem = f"{root}/below/here/mine-{reply.profile['profile_id']}-TP-0"
    assert sorted(profile["files"]) == [f"{stem}-DECODE.trace.json.gz", f"{stem}-EXTEND.trace.json.gz"]
    assert ops(f"{stem}-EXTEND.trace.json.gz") == ["aten::sin"] * 3
    assert ops(f"{stem}-DECODE.trace.json.gz") == ["aten::cos"] * 3
    assert len(os.listdir(root / "below/here")) == 2


def test_stop_writes_what_there_is(h):
    start(h, profile_by_stage=True, num_steps=4)
    serve(h, 1, 3)
    profile = tell(h, StopProfileReq("id")).profile
    assert (profile["running"], profile["steps"]) == (False, {"EXTEND": 1, "DECODE": 2})
    assert [len(ops(path)) for path in profile["files"]] == [1, 2]
    start(h)
    profile = tell(h, StopProfileReq("id")).profile
    assert (profile["steps"], profile["files"]) == ({}, [])


def test_a_profile_that_ended_by_itself_is_told_of_once(h):
    start(h, num_steps=1)
    serve(h, 1, 2)
    profile = tell(h, StopProfileReq("id")).profile
    assert (profile["end_reason"], len(profile["files"])) == ("1 steps are recorded", 1)
    assert tell(h, StopProfileReq("id")).error == "no profile is running"


def test_stop_is_answered_when_the_trace_is_written(h, monkeypatch):
    """Steps go on meanwhile, and another profile has to wait."""
    let_go = threading.Event()
    finish = TraceWriter._close
    monkeypatch.setattr(TraceWriter, "_close", lambda self: let_go.wait(30) and finish(self))
    start(h)
    serve(h, 1, 3)
    h.add("b", [5, 6], 20)
    h.inbox += [StopProfileReq("s1"), StopProfileReq("s2"), StartProfileReq("s3", ProfileSettings())]
    steps = h.scheduler.stats.steps
    for _ in range(10):
        h.step()
    assert h.scheduler.stats.steps == steps + 10
    [refused] = [m for m in h.other if isinstance(m, ProfileReply)]
    assert (refused.call_id, "running already" in refused.error) == ("s3", True)
    let_go.set()
    h.scheduler.profiler.wait()
    h.step()
    replies = [m for m in h.other if isinstance(m, ProfileReply)][1:]
    assert [(r.call_id, len(r.profile["files"]), r.profile["running"]) for r in replies] == [
        ("s1", 1, False),
        ("s2", 1, False),
    ]


@pytest.mark.parametrize("hostile", [{}, {"with_stack": True, "record_shapes": True}])
def test_events_are_bounded_and_none_is_lost(h, monkeypatch, root, hostile):
    """Many short sessions make one trace, which ends by itself."""
    monkeypatch.setattr(step_profiler, "SESSION_EVENTS", 50)
    monkeypatch.setattr(step_profiler, "MAX_PROFILE_EVENTS", 3000)
    start(h, **hostile)
    before = h.scheduler.worker
    while h.scheduler.profiler.recording:
        serve(h, 1, 5)
    assert h.scheduler.worker is not before
    profile = state(h)
    assert (profile["running"], profile["end_reason"]) == (False, "the limit of 3000 events is reached")
    assert 3000 <= profile["events"] < 6000
    [path] = profile["files"]
    count = profile["steps"]["ALL"]
    assert len(ops(path)) == count > 5
    steps = [e for e in events(path) if e.get("name", "").startswith("step ") and e.get("cat") == "user_annotation"]
    assert len(steps) == count
    times = [e["ts"] for e in steps]
    assert times == sorted(times)
    assert os.listdir(root) == [os.path.basename(path)]


def test_start_step_counts_from_the_servers_start(h):
    serve(h, 1, 4)
    assert h.scheduler.stats.steps == 4
    start(h, start_step=6, num_steps=2)
    serve(h, 1, 5)  # steps 5 to 9: sin cos cos cos cos
    assert ops(state(h)["files"][0]) == ["aten::cos", "aten::cos"]
    start(h, start_step=1, num_steps=1)  # past: the next step
    serve(h, 1, 2)
    assert ops(state(h)["files"][0]) == ["aten::sin"]


def test_a_step_under_way_is_not_recorded(h):
    h.add("a", [5, 6], 6)
    h.step()
    assert h.scheduler.in_flight is not None
    waited = []
    pending = h.scheduler.in_flight.pending
    h.scheduler.in_flight.pending = type("Pending", (), {"result": lambda _: waited.append(1) or pending.result()})()
    start(h, num_steps=1)  # the same step() launches the recorded step
    assert len(waited) == 2, "once before the session began, once for the tokens"
    h.run()


def test_refusals(h):
    assert "needs num_steps" in start(h, profile_by_stage=True).error
    assert "outside of" in start(h, output_dir="/etc").error
    if not torch.cuda.is_available():
        assert "GPU" in start(h, activities=["CPU", "GPU"]).error
    assert tell(h, StopProfileReq("id")).error == "no profile is running"
    assert start(h).error == ""
    assert "running already" in start(h).error
    tell(h, StopProfileReq("id"))
    assert start(h).error == ""


def test_a_lost_folder_ends_the_profile_and_not_the_server(h, root):
    start(h, num_steps=2, output_dir="sub")
    os.rmdir(root / "sub")
    serve(h, 1, 4)
    profile = state(h)
    assert (profile["running"], profile["files"]) == (False, [])
    assert "could not be written" in profile["error"]
    assert len(h.received["r0"].ids) == 4


def test_stack_and_shapes(h):
    start(h, num_steps=1, record_shapes=True, with_stack=True)
    serve(h, 1, 1)
    text = gzip.decompress(open(state(h)["files"][0], "rb").read()).decode()
    assert "Input Dims" in text
    assert "test_step_profiler.py" in text


def test_an_unended_profile_is_bounded(h, monkeypatch):
    assert MAX_PROFILE_STEPS == 5000
    monkeypatch.setattr("sglang.srt.managers.step_profiler.MAX_PROFILE_STEPS", 3)
    start(h)
    serve(h, 1, 6)
    assert state(h)["steps"] == {"ALL": 3}


@pytest.mark.parametrize("path", [None, "", "a/b", "a/../b", "."])
def test_folders_within(root, path):
    folder = profile_folder(path)
    assert os.path.isdir(folder)
    assert folder.startswith(str(root))
    assert profile_folder(str(root / "absolute")) == str(root / "absolute")


@pytest.mark.parametrize("path", ["..", "a/../../b", "/", "/etc/x", "link/x", "a\0b", "\ud800"])
def test_folders_outside(root, path):
    os.symlink("/var", root / "link")
    sibling = f"{root}2"  # begins with the root's name
    with pytest.raises(ValueError, match="outside of|null|surrogates"):
        profile_folder(path)
    with pytest.raises(ValueError, match="outside of"):
        profile_folder(sibling)
    assert not os.path.exists(sibling)
    assert os.listdir(root) == ["link"]


def test_internal_state_is_json_safe(h):
    start(h, num_steps=1)
    serve(h, 1, 1)
    json.dumps(state(h))
    assert isinstance(tell(h, InternalStateReq("id")), InternalStateReply)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
