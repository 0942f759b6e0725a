"""The offline Engine: from plain scripts, from a running event loop and from threads, with nothing left behind."""

import asyncio
import os
import subprocess
import sys
import threading
import time

import psutil
import pytest

from sglang.srt.entrypoints.engine import Engine
from sglang.srt.managers.process_supervisor import ChildDied
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import children_of, wait_for
from sglang.test.tiny_tokenizer import make_model_folder, make_tokenizer

register_cpu_ci(est_time=10, suite="base-a-test-cpu")

FAKE_SCHEDULER = "sglang.test.fake_scheduler"
SLOW = {"max_new_tokens": 400, "custom_params": {"delay": 0.05}}


def slow(label: str) -> dict:
    return {"max_new_tokens": 400, "custom_params": {"delay": 0.05, "label": label}}


def says(text: str, **custom) -> dict:
    ids = make_tokenizer().encode(text, add_special_tokens=False).ids
    return {"max_new_tokens": len(ids), "custom_params": {"output_ids": ids, **custom}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return make_model_folder(tmp_path_factory.mktemp("m"))


@pytest.fixture(scope="module")
def engine(folder):
    with Engine(model_path=folder, scheduler_module=FAKE_SCHEDULER) as engine:
        yield engine


def children() -> set[psutil.Process]:
    """All that run, those of the module's engine among them."""
    return set(children_of(recursive=True))


def state(engine: Engine) -> dict:
    return engine.get_server_info()["internal_states"][0]


def test_generate(engine):
    answer = engine.generate("a prompt", says("an answer"))
    assert answer["text"] == "an answer"
    assert answer["meta_info"]["finish_reason"]["type"] == "length"
    assert [a["text"] for a in engine.generate(["a", "b"], [says("x"), says("y")])] == ["x", "y"]
    assert engine.generate(input_ids=[5, 6], sampling_params={"max_new_tokens": 3})["output_ids"] == [5, 6, 5]
    answer = engine.generate("a", says("z"), return_logprob=True, top_logprobs_num=1, rid="mine")
    assert (answer["meta_info"]["id"], answer["meta_info"]["output_token_logprobs"][0][0]) == ("mine", -1.0)
    pieces = [p["text"] for p in engine.generate("a", says("stream of text", delay=0.002), stream=True)]
    assert pieces[-1] == "stream of text"
    assert len(pieces) > 5


def test_arguments_by_position_are_in_upstreams_order(engine):
    answer = engine.generate("a", says("zz"), None, None, None, None, None, True, 0, 2, [3])
    meta = answer["meta_info"]
    assert len(meta["output_top_logprobs"][0]) == 2 and meta["output_token_ids_logprobs"][0][0][1] == 3
    assert len(meta["input_token_logprobs"]) == 2
    pieces = engine.generate("a", says("zz"), *[None] * 15, True)
    assert list(pieces)[-1]["text"] == "zz"
    assert engine.generate("a", says("z"), *[None] * 23, "mine")["meta_info"]["id"] == "mine"
    assert engine.generate(prompt="a", sampling_params=says("z"), session_id=None)["text"] == "z"
    with pytest.raises(ValueError, match="mm_hashes is not supported"):
        engine.generate("a", mm_hashes=["s"])
    with pytest.raises(ValueError, match="image_data is not supported"):
        engine.generate("a", {}, None, ["picture.png"])
    with pytest.raises(TypeError, match="got prompt twice"):
        engine.generate("a", prompt="b")
    with pytest.raises(TypeError, match="29 positional"):
        engine.generate(*["a"] * 30)
    with pytest.raises(ValueError, match="strem"):
        engine.generate("a", strem=False)


def test_children_and_manager(folder):
    others = children()
    engine = Engine(model_path=folder, scheduler_module=FAKE_SCHEDULER)
    try:
        pids = engine.get_all_child_pids()
        assert sorted(pids) == sorted(p.pid for p in children() - others) and len(pids) == 2
        assert engine.tokenizer_manager.info.model_path == folder
    finally:
        engine.shutdown()
    assert engine.get_all_child_pids() == []


def test_control(engine, folder):
    assert engine.flush_cache() is True
    assert engine.get_model_info()["model_path"] == folder
    assert engine.get_server_info()["log_level"] == "error"
    answers = []
    thread = threading.Thread(target=lambda: answers.append(engine.generate("a", slow("r"), rid="r")))
    thread.start()
    wait_for(lambda: state(engine)["running"] == ["r"])
    assert engine.flush_cache() is False
    engine.abort_request("r")
    thread.join(5)
    assert answers[0]["meta_info"]["finish_reason"]["type"] == "abort"


def test_inside_a_running_event_loop(engine):
    async def main() -> None:
        answers = await asyncio.gather(*(engine.async_generate("q", says(f"answer {i}")) for i in range(8)))
        assert [a["text"] for a in answers] == [f"answer {i}" for i in range(8)]
        stream = await engine.async_generate("q", says("in pieces", delay=0.002), stream=True)
        assert [p["text"] async for p in stream][-1] == "in pieces"
        assert engine.generate("q", says("sync"))["text"] == "sync"  # blocks this loop, but works

    asyncio.run(main())


def test_from_many_threads(engine):
    answers = {}
    threads = [
        threading.Thread(
            target=lambda i=i: answers.update({i: engine.generate("q", says(f"t{i}", delay=0.002))["text"]})
        )
        for i in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {i: f"t{i}" for i in range(16)}


def test_made_in_a_thread_that_ends(folder):
    """A death signal tied to the starting thread would kill the children with it."""
    made = []
    thread = threading.Thread(target=lambda: made.append(Engine(model_path=folder, scheduler_module=FAKE_SCHEDULER)))
    thread.start()
    thread.join()
    time.sleep(1.2)
    with made[0] as engine:
        assert engine.generate("a", says("alive"))["text"] == "alive"


def test_leaving_early_aborts(engine):
    pieces = engine.generate("a", slow("iterator"), stream=True)
    next(pieces)
    pieces.close()
    wait_for(lambda: "iterator" in state(engine)["aborted"])

    async def main() -> None:
        stream = await engine.async_generate("a", slow("async iterator"), stream=True)
        await anext(stream)
        await stream.aclose()
        task = asyncio.create_task(engine.async_generate("a", slow("task")))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    wait_for(lambda: {"async iterator", "task"} <= set(state(engine)["aborted"]))
    assert state(engine)["running"] == []


@pytest.mark.parametrize(
    ("request_", "says_what"),
    [
        ({}, "exactly one of text and input_ids"),
        ({"prompt": 5}, "text"),
        ({"prompt": "a", "sampling_params": {"temprature": 1}}, "temprature"),
        ({"prompt": "a", "nonsense": 1}, "nonsense"),
        ({"input_ids": [99999]}, "token id 99999"),
        ({"prompt": "\ud800"}, "half of a surrogate pair"),
        ({"prompt": "a", "sampling_params": {"stop": "\ud800"}}, "valid Unicode"),
    ],
)
def test_wrong_requests_are_value_errors(engine, request_, says_what):
    with pytest.raises(ValueError, match=says_what):
        engine.generate(**request_)
    with pytest.raises(ValueError, match=says_what):
        list(engine.generate(**request_, stream=True))
    assert engine.generate("a", says("still here"))["text"] == "still here"
    assert state(engine)["running"] == []


def test_wrong_arguments():
    with pytest.raises(TypeError, match="did you mean model_path"):
        Engine(model_pth="x")
    with pytest.raises(ValueError, match="no such folder"):
        Engine(model_path="/no/such/model")


def test_failed_start_leaves_nothing(folder):
    before = children()
    threads = threading.active_count()
    with pytest.raises(ChildDied, match="the scheduler process ended with exit code 2"):
        Engine(
            model_path=folder,
            scheduler_module=FAKE_SCHEDULER,
            json_model_override_args={"fake": {"startup_error": "no luck"}},
        )
    assert children() == before
    wait_for(lambda: threading.active_count() <= threads)


def test_death_of_a_child_raises_and_ends_the_other(folder):
    before = children()
    with Engine(model_path=folder, scheduler_module=FAKE_SCHEDULER) as engine:
        waiting = []

        def ask() -> None:
            try:
                engine.generate("a", SLOW)
            except RuntimeError as e:
                waiting.append(str(e))

        thread = threading.Thread(target=ask)
        thread.start()
        wait_for(lambda: state(engine)["running"])
        with pytest.raises(RuntimeError, match="the scheduler process ended with exit code 5"):
            engine.generate("a", {"custom_params": {"die": 5}})
        thread.join(5)
        assert waiting == ["the scheduler process ended with exit code 5"]
        with pytest.raises(RuntimeError, match="exit code 5"):
            engine.generate("a")
        wait_for(lambda: children() == before)


def test_shutdown_while_requests_run(folder):
    before = children()
    engine = Engine(model_path=folder, scheduler_module=FAKE_SCHEDULER)
    assert len(children() - before) == 2
    errors = []

    def ask() -> None:
        try:
            engine.generate("a", SLOW)
        except RuntimeError as e:
            errors.append(str(e))

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: state(engine)["running"])
    engine.shutdown()
    engine.shutdown()
    thread.join(5)
    assert errors == ["the engine has been shut down"]
    assert children() == before
    with pytest.raises(RuntimeError, match="shut down"):
        engine.generate("a")


@pytest.mark.parametrize("ending", ["", "engine.shutdown()", "raise SystemExit(3)", "import os; os._exit(4)"])
def test_plain_script(folder, tmp_path, ending):
    """No `if __name__ == '__main__'`, and no shutdown() needed: the script ends and so do its processes."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import sglang, psutil\n"
        f"engine = sglang.Engine(model_path={folder!r}, scheduler_module={FAKE_SCHEDULER!r})\n"
        f"print(engine.generate('a', {{'max_new_tokens': 2}})['text'])\n"
        f"print(*[p.pid for p in psutil.Process().children()], flush=True)\n"
        f"{ending}\n"
    )
    (tmp_path / "logging.py").write_text("raise ImportError('a file of the working directory was imported')")
    script = script.rename(tmp_path.parent / f"script-{os.getpid()}.py")
    result = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert result.returncode == {"": 0, "e": 0, "r": 3, "i": 4}[ending[:1]], result.stderr
    text, pids = result.stdout.splitlines()
    assert text == "a"
    wait_for(lambda: not any(psutil.pid_exists(int(pid)) for pid in pids.split()))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
