"""Sockets between the processes: whole messages in order, clear errors, nothing left on disk."""

import asyncio
import os
import stat
import sys
import time

import msgspec
import pytest
import zmq

from sglang.srt.managers.io_struct import (
    AbortReq,
    BatchTokenOutput,
    FinishReason,
    Logprobs,
    StopReq,
    ToDetokenizer,
    TokenizedGenerateReq,
    TokenOutput,
    ToScheduler,
)
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.utils.ipc import MAX_PATH_BYTES, TURN_BYTES, Receiver, Sender, make_ipc_dir
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=3, suite="unit-test-cpu")


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "s")


@pytest.fixture
def pair(path):
    receiver, sender = Receiver(path, ToScheduler), Sender(path)
    yield receiver, sender
    sender.close()
    receiver.close()


def raw_sender(path: str) -> zmq.Socket:
    socket = zmq.Context.instance().socket(zmq.PUSH)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(f"ipc://{path}")
    return socket


def test_messages_arrive_whole_and_in_order(pair):
    receiver, sender = pair
    sent = [StopReq(0)]
    for i in range(2000):
        params = SamplingParams(stop=["ü"], logit_bias={"3": -1.5}, custom_params={"a": [1, None, {"b": 2.5}]})
        sent.append(TokenizedGenerateReq(i, list(range(i)), params, token_ids_logprob=[1, 2]))
    for message in sent:
        sender.send(message)
    got = []
    while len(got) < len(sent):
        messages = receiver.receive_all(block=5.0)
        assert messages, f"{len(got)} of {len(sent)} messages came"
        got += messages
    assert got == sent


def test_nested_output_survives(path):
    receiver, sender = Receiver(path, ToDetokenizer), Sender(path)
    logprobs = Logprobs([None, -0.5], [1, 2], [None, [(-0.5, 2)]], [[-1.0], None])
    message = BatchTokenOutput([TokenOutput(7, [1, 2], FinishReason("stop", matched="x"), output_logprobs=logprobs)])
    sender.send(message)
    assert receiver.receive_all(block=5.0) == [message]
    sender.close()
    receiver.close()


def test_block_waits_no_longer_than_told(pair):
    receiver, sender = pair
    started = time.monotonic()
    assert receiver.receive_all() == []
    assert receiver.receive_all(block=0.2) == []
    assert 0.19 < time.monotonic() - started < 2.0  # a poll counts whole milliseconds
    sender.send(StopReq(3))
    assert receiver.receive_all(block=True) == [StopReq(3)]


def test_sender_may_start_first(path):
    sender = Sender(path)
    sender.send(AbortReq(4))
    time.sleep(0.1)
    receiver = Receiver(path, ToScheduler)
    assert receiver.receive_all(block=5.0) == [AbortReq(4)]
    sender.close()
    receiver.close()


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (msgspec.msgpack.encode(["Explode", 1]), "Explode"),
        (msgspec.msgpack.encode(["StopReq", "x"]), "expected `int`"),
        (msgspec.msgpack.encode(["StopReq"]), "length"),
        (b"\x93garbage", "scheduler"),
        (b"", "scheduler"),
    ],
)
def test_bytes_that_are_no_message_raise_and_say_what_is_wrong(tmp_path, data, names):
    path = str(tmp_path / "scheduler")
    receiver = Receiver(path, ToScheduler)
    raw = raw_sender(path)
    raw.send(data)
    with pytest.raises(ValueError, match="unreadable message on scheduler") as caught:
        receiver.receive_all(block=5.0)
    assert names.lower() in str(caught.value).lower()
    raw.close()
    receiver.close()


def test_event_loop_gets_messages_sent_before_and_after_attaching(pair):
    receiver, sender = pair

    async def main() -> list:
        got, failures = [], []
        sender.send(StopReq(100))
        await asyncio.sleep(0.1)
        receiver.attach(got.extend, failures.append)
        for i in range(300):
            sender.send(StopReq(i))
            if i % 10 == 0:
                await asyncio.sleep(0)
        for _ in range(200):
            if len(got) == 301:
                break
            await asyncio.sleep(0.02)
        assert not failures
        return [m.serial for m in got]

    assert asyncio.run(main()) == [100, *range(300)]


def test_a_flood_is_handled_in_turns(pair):
    """Thousands of generations that end together do not keep the event loop from everything else."""
    receiver, sender = pair

    async def main() -> tuple[list[int], int]:
        runs, failures, turns = [], [], 0
        for i in range(200):
            sender.send(AbortReq(i, message="x" * 10_000))
        await asyncio.sleep(0.3)
        receiver.attach(lambda messages: runs.append(len(messages)), failures.append)
        while sum(runs) < 200:
            await asyncio.sleep(0)
            turns += 1
        assert not failures
        return runs, turns

    runs, turns = asyncio.run(main())
    assert sum(runs) == 200 and max(runs) <= TURN_BYTES // 10_000 + 1
    assert turns >= 4


def test_event_loop_hears_of_failures_once(path):
    """An exception in a loop callback would otherwise only be logged, and those who wait would wait for ever."""

    async def main(handle, data: bytes) -> list[Exception]:
        receiver, raw, failures = Receiver(path, ToScheduler), raw_sender(path), []
        receiver.attach(handle, failures.append)
        raw.send(data)
        raw.send(data)
        for _ in range(100):
            if failures:
                break
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        raw.close()
        receiver.close()
        return failures

    def cannot(messages: list) -> None:
        raise KeyError("no such request")

    assert [type(e) for e in asyncio.run(main(list, b"junk"))] == [ValueError]
    assert [type(e) for e in asyncio.run(main(cannot, msgspec.msgpack.encode(StopReq(3))))] == [KeyError]


def test_directory_is_private_and_short_enough(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = make_ipc_dir()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    short = make_ipc_dir()
    try:
        assert len(short + "/detokenizer") <= MAX_PATH_BYTES
        assert not list(long.iterdir())
    finally:
        os.rmdir(short)


def test_too_long_path_is_named():
    with pytest.raises(ValueError, match="108 bytes, at most 107"):
        Receiver("/" + "x" * 107, ToScheduler)


def test_close_leaves_no_thread_waiting(path):
    """Messages to a process that is gone must not hold up the exit."""
    sender = Sender(path)
    for _ in range(100):
        sender.send(StopReq(5))
    started = time.monotonic()
    sender.close()
    sender.close()
    assert time.monotonic() - started < 1.0


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
