"""bench_offline_throughput: its block, record and exit codes, with the shipped model and with a fake scheduler."""

import json
import os
import re
import sys

import pytest

from sglang import bench_offline_throughput
from sglang.bench_offline_throughput import measure, warm_up
from sglang.benchmark.datasets import DatasetRow
from sglang.srt.arg_fields import OneLineParser
from sglang.srt.entrypoints.engine import Engine
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import children_of
from sglang.test.tiny_tokenizer import make_model_folder

register_cpu_ci(est_time=18, suite="base-a-test-cpu")

IDS = ["--dataset-name", "random-ids", "--tokenize-prompt", "--random-range-ratio", "1"]
SHORT = [*IDS, "--num-prompts", "5", "--random-input-len", "12", "--random-output-len", "6"]
LINES = [
    "Backend", "Successful requests", "Failed requests", "Benchmark duration (s)", "Total input tokens",
    "Total generated tokens", "Last generation throughput (tok/s)", "Request throughput (req/s)",
    "Input token throughput (tok/s)", "Output token throughput (tok/s)", "Total token throughput (tok/s)",
]  # fmt: skip


def flags_of(*argv: str):
    parser = OneLineParser()
    bench_offline_throughput.add_flags(parser)
    return parser.parse_args(argv)


def test_runs_prints_and_records(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SGLANG_TORCH_PROFILER_DIR", str(tmp_path / "traces"))
    file = tmp_path / "result.jsonl"
    flags = [*SHORT, "--result-filename", str(file), "--profile", "--decode-log-interval", "2", "--backend", "engine"]
    assert bench_offline_throughput.main(flags) == 0
    out = capsys.readouterr().out
    assert "Offline Throughput Benchmark Result" in out
    block = dict(re.findall(r"^([^:\n]+):\s+(\S+)$", out, re.MULTILINE))
    assert list(block)[: len(LINES)] == LINES
    assert (block["Successful requests"], block["Failed requests"]) == ("5", "0")
    assert (block["Total input tokens"], block["Total generated tokens"]) == ("60", "30")
    [record] = [json.loads(line) for line in file.read_text().splitlines()]
    assert (record["backend"], record["dataset_name"], record["successful_requests"]) == ("engine", "random-ids", 5)
    assert (record["total_input_tokens"], record["total_output_tokens"]) == (60, 30)
    seconds = record["total_latency"]
    assert record["request_throughput"] == pytest.approx(5 / seconds)
    assert record["input_throughput"] == pytest.approx(60 / seconds)
    assert record["output_throughput"] == pytest.approx(30 / seconds)
    assert record["total_throughput"] == pytest.approx(90 / seconds)
    assert record["last_gen_throughput"] > 0
    assert len(os.listdir(tmp_path / "traces")) == 2
    assert "DECODE: 5 steps, CPU ops busy" in out
    assert not children_of(recursive=True)


def test_refused_requests_fail_the_run(capsys):
    flags = [*IDS, "--num-prompts", "2", "--random-input-len", "300", "--random-output-len", "4", "--skip-warmup"]
    # The pool holds no such prompt; the context does.
    flags += ["--max-total-tokens", "200", "--chunked-prefill-size", "16", "--swa-full-tokens-ratio", "1"]
    flags += ["--context-length", "400", "--json-model-override-args", '{"sliding_window": 16}']
    assert bench_offline_throughput.main(flags) == 1
    captured = capsys.readouterr()
    assert re.search(r"Failed requests: +2$", captured.out, re.MULTILINE)
    assert captured.err.count("failed: The input (300 tokens) is longer than") == 2
    assert "error: 2 of 2 requests failed" in captured.err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "--dataset-path"),
        ([*SHORT, "--num-prompts", "0"], "--num-prompts is 0"),
        ([*SHORT, "--backend", "runtime"], "--backend"),
        ([*SHORT, "--model-path", "/no/such/folder"], "/no/such/folder"),
        ([*SHORT, "--result-filename", "/no/such/folder/x"], "/no/such/folder/x"),
        ([*SHORT, "--random-input-len", "99999"], "100005 tokens together"),
        (["--dataset-name", "random-ids", "--skip-tokenizer-init"], "tokenizer"),
        (["--num-promts", "3"], "unknown flag --num-promts; did you mean --num-prompts?"),
    ],
)
def test_wrong_flags(capsys, flags, says):
    with pytest.raises(SystemExit) as end:
        bench_offline_throughput.main(flags)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error
    assert error.count("\n") == 1


def test_an_engine_that_does_not_start(capfd):
    flags = ["--cuda-graph-max-bs", "4", "--attention-backend", "torch_native"]  # only the scheduler sees what is wrong
    assert bench_offline_throughput.main([*SHORT, *flags]) == 2
    error = capfd.readouterr().err
    assert "--cuda-graph-max-bs" in error
    assert error.count("\n") == 1


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = make_model_folder(tmp_path_factory.mktemp("m"))
    with Engine(model_path=folder, scheduler_module="sglang.test.fake_scheduler") as engine:
        yield engine


def test_failures_are_counted_apart(engine):
    rows = [DatasetRow([5, 6, 7], 3, 4), DatasetRow([99999], 1, 4), DatasetRow("a text", 3, 2)]
    figures, answers = measure_with(engine, rows)
    assert (figures.successful_requests, figures.failed_requests) == (2, 1)
    assert figures.total_input_tokens == 3 + answers[2]["meta_info"]["prompt_tokens"]
    assert figures.total_output_tokens == 4 + 2
    assert "token id 99999" in str(answers[1])


def measure_with(engine: Engine, rows: list[DatasetRow], *argv: str):
    """measure() with a fake scheduler, which has no generation throughput of its own."""
    info = engine.get_server_info

    def with_throughput() -> dict:
        return {"internal_states": [{**info()["internal_states"][0], "last_gen_throughput": 1.0}]}

    engine.get_server_info = with_throughput
    try:
        return measure(engine, rows, flags_of(*argv))
    finally:
        engine.get_server_info = info


def test_an_engine_that_dies_leaves_figures(tmp_path):
    before = set(children_of())
    with Engine(model_path=make_model_folder(tmp_path), scheduler_module="sglang.test.fake_scheduler") as engine:
        started = set(children_of()) - before
        [scheduler] = [p for p in started if "fake_scheduler" in p.cmdline()[-1]]
        scheduler.kill()
        scheduler.wait()
        figures, answers = measure(engine, [DatasetRow([5, 6], 2, 4)] * 3, flags_of())
    assert (figures.failed_requests, figures.total_output_tokens, figures.last_gen_throughput) == (3, 0, None)
    assert all("scheduler" in str(answer) for answer in answers)


def test_eos_counts_only_when_asked(engine):
    rows = [DatasetRow([5, 1, 6], 3, 6)]  # the fake scheduler repeats the prompt; 1 is its end token
    assert measure_with(engine, rows)[0].total_output_tokens == 6
    assert measure_with(engine, rows, "--disable-ignore-eos")[0].total_output_tokens == 2


@pytest.mark.parametrize("settings", [{"num_steps": 0}, {"nonsense": 1}, {"activities": ["XPU"]}])
def test_wrong_profile_settings_are_value_errors(engine, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        engine.start_profile(**settings)
    assert engine.generate("still here", {"max_new_tokens": 1})["output_ids"]


def test_warm_up(engine, monkeypatch):
    warm_up(engine)
    state = engine.get_server_info()["internal_states"][0]
    assert state["last_request"]["max_new_tokens"] == 16
    assert flags_of("--skip-warmup").skip_warmup
    assert not flags_of().skip_warmup

    async def broken(*_: object) -> list:
        return [RuntimeError("no luck")]

    monkeypatch.setattr(bench_offline_throughput, "ask_all", broken)
    with pytest.raises(RuntimeError, match="a warm-up request failed: no luck"):
        warm_up(engine)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
