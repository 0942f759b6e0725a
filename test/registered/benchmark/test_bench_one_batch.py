"""bench_one_batch with the shipped model: runs, records, figures, the correctness test, wrong flags."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sglang import bench_one_batch
from sglang.bench_one_batch import summary
from sglang.benchmark.prefix_check import PrefixCheck, compare
from sglang.benchmark.static_bench import Bench, Case, Run
from sglang.srt.model_executor.step_io import TokenLogprob
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.trace_table import stage_table
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import children_of
from sglang.test.tiny_models import make_tiny_assistant, make_tiny_gemma4

register_cpu_ci(est_time=28, suite="base-a-test-cpu")

FIGURES = (
    "prefill_latency", "prefill_throughput", "median_decode_latency", "median_decode_throughput", "total_latency",
    "overall_throughput",
)  # fmt: skip


# Any drafter of the right shape does: what it says is not looked at.
DRAFTS = ["--speculative-algorithm", "NEXTN"]


def args(**values) -> ServerArgs:
    return ServerArgs.from_kwargs(
        **{"log_level": "warning", "random_seed": 0, "max_total_tokens": 4096, "dtype": "float32", **values}
    )


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(args(disable_radix_cache=True, chunked_prefill_size=16))


def test_runs_prints_and_records(tmp_path, capsys):
    file = tmp_path / "result.jsonl"
    file.write_text('{"run_name": "before"}\n')
    flags = ["--batch-size", "1", "2", "--input-len", "16", "8", "--output-len", "8", "--repeats", "2"]
    flags += ["--run-name", "mine", "--result-filename", str(file), "--log-decode-step", "6"]
    assert bench_one_batch.main(flags) == 0
    before, *records = [json.loads(line) for line in file.read_text().splitlines()]
    assert before == {"run_name": "before"}
    cases = [(r["batch_size"], r["input_len"], r["output_len"]) for r in records]
    assert cases == [(1, 16, 8), (1, 8, 8), (2, 16, 8), (2, 8, 8)]
    for record in records:
        assert (record["run_name"], record["repeats"], record["prefill_steps"]) == ("mine", 2, 1)
        assert record["device"] == "cpu"
        assert all(record[name] > 0 for name in FIGURES)
        assert record["total_latency"] > record["prefill_latency"]
    out = capsys.readouterr().out
    assert out.count("Prefill. latency:") == 4 * 3  # two runs and the medians
    assert out.count("Decode.  median latency:") == out.count("Total. latency:") == 4
    shown = {line.split()[1] for line in out.splitlines() if line.startswith("Decode ")}
    assert shown == {"0.", "1.", "2.", "3.", "4.", "6."}


def test_figures_by_hand():
    runs = [Run(2.0, 1, [0.5, 0.1, 0.3], 12), Run(1.0, 1, [0.2, 0.2, 0.2], 12), Run(4.0, 1, [0.4, 0.4, 0.4], 12)]
    figures = summary(Case(batch_size=4, input_len=10, output_len=4), runs)
    assert figures == {
        "prefill_latency": 2.0,
        "prefill_throughput": 20.0,
        "median_decode_latency": 0.3,  # of 0.3, 0.2, 0.4
        "median_decode_throughput": pytest.approx(4 / 0.3),
        "total_latency": pytest.approx(2.9),  # of 2.9, 1.6, 5.2
        "overall_throughput": pytest.approx(56 / 2.9),
    }
    assert set(summary(Case(4, 10, 1), [Run(2.0, 1, [], 0)])) == set(FIGURES) - {
        "median_decode_latency",
        "median_decode_throughput",
    }
    drafts = summary(Case(batch_size=4, input_len=10, output_len=4), [Run(2.0, 1, [0.5, 0.1, 0.3], 30)])
    assert drafts["accept_length"] == 2.5 and drafts["median_decode_throughput"] == pytest.approx(10 / 0.3)
    assert drafts["overall_throughput"] == pytest.approx((40 + 34) / 2.9)


def test_slots_are_free_again_and_decodes_are_counted(bench):
    for case in (Case(3, 20, 5), Case(1, 7, 1), Case(3, 20, 5)):
        bench.check(case)
        run = bench.run(case)
        assert run.prefill_steps == -(-case.batch_size * case.input_len // 16)
        assert len(run.decodes) == case.output_len - 1
        usage = bench.kv.usage()
        assert (usage["full_free"], usage["swa_free"]) == (usage["full_capacity"], usage["swa_capacity"])


def test_drafts_in_a_batch(tmp_path):
    drafter = make_tiny_assistant(tmp_path / "drafter", "moe_top2")
    target = make_tiny_gemma4(tmp_path / "target", "moe_top2", tokenizer=True)
    flags = {"model_path": str(target), "dtype": "bfloat16", "max_total_tokens": 400, "chunked_prefill_size": 16}
    flags |= {"speculative_algorithm": "NEXTN", "speculative_draft_model_path": str(drafter), "max_running_requests": 4}
    drafting = Bench(args(**flags, speculative_num_steps=2, speculative_eagle_topk=2, speculative_num_draft_tokens=5))
    case = Case(3, 20, 6)
    drafting.check(case)
    run = drafting.run(case)
    assert len(run.decodes) == 5 and 15 <= run.tokens <= 45
    with pytest.raises(ValueError, match="--output-len 80, 5 tokens a step, together are above 396"):
        drafting.check(Case(1, 20, 80))


def test_prompts_depend_on_seed_and_case_alone(bench):
    first, again = bench.prompts(Case(2, 9, 4)), bench.prompts(Case(2, 9, 8))
    assert [p.tolist() for p in first] == [p.tolist() for p in again]
    assert [len(p) for p in first] == [9, 9]
    assert all(0 <= p.min() <= p.max() < bench.config.vocab_size for p in first)
    assert first[0].tolist() != first[1].tolist()


@pytest.mark.parametrize(
    ("case", "says"),
    [
        (Case(65, 4, 2), "--batch-size 65 is above --max-running-requests 64"),
        (Case(1, 10**6, 2), "--input-len 1000000 and --output-len 2 together are above"),
        (Case(64, 60, 10), "does not fit"),
    ],
)
def test_cases_that_do_not_fit(bench, case, says):
    with pytest.raises(ValueError, match=says):
        bench.check(case)
    bench.kv.check_idle()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--batch-size", "0"], "--batch-size: must be at least 1, got 0"),
        (["--input-len", "x"], "--input-len: invalid integer value: 'x'"),
        (["--output-len"], "--output-len: expected at least one argument"),
        (["--repeats", "0"], "--repeats"),
        (["--log-decode-step", "-1"], "--log-decode-step"),
        (["--bach-size", "1"], "unknown flag --bach-size; did you mean --batch-size?"),
        (["--load-format", "dumy"], "did you mean dummy?"),
        (["--model-path", "/no/such/folder"], "/no/such/folder"),
        (["--result-filename", "/no/such/folder/x.jsonl"], "/no/such/folder/x.jsonl"),
        (["--batch-size", "1", "999", "--max-total-tokens", "4096"], "--batch-size 999 is above"),
        (["--correctness-test", "--cut-len", "999"], "--cut-len 999 must be below"),
        (["--correctness-test", "--output-len", "99999"], "--output-len 99999"),
        (["--correctness-test", "--disable-radix-cache"], "--disable-radix-cache"),
        (["--correctness-test", *DRAFTS], "leave --speculative-algorithm out"),
        (["--tp-size", "3"], "--tp-size 3 does not divide"),
        (["--tp-size", "2", "--nnodes", "2", "--dist-init-addr", "127.0.0.1:1"], "--nnodes 2: bench_one_batch runs on"),
    ],
)
def test_wrong_flags(tmp_path, monkeypatch, capsys, flags, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        bench_one_batch.main(flags)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error
    assert error.count("\n") == 1


def start_ranks(folder: Path, *flags: str) -> subprocess.Popen:
    """bench_one_batch of two ranks in a process of its own: a group can't be left again."""
    command = [sys.executable, "-m", "sglang.bench_one_batch", "--device", "cpu", "--tp-size", "2", *flags]
    env = os.environ | {"SGLANG_TORCH_PROFILER_DIR": str(folder), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_ranks(tmp_path):
    flags = ["--batch-size", "2", "3", "--input-len", "20", "--output-len", "4", "--profile", "--dtype", "float32"]
    timed = start_ranks(tmp_path, *flags)
    checked = start_ranks(tmp_path, "--correctness-test", "--output-len", "3", "--dtype", "float32")
    (out, error), (checks, _) = timed.communicate(timeout=120), checked.communicate(timeout=120)
    assert (timed.returncode, checked.returncode) == (0, 0), error
    records = [json.loads(line) for line in (tmp_path / "result.jsonl").read_text().splitlines()]
    assert [record["batch_size"] for record in records] == [2, 3]
    assert out.count("Benchmark. batch size") == 2 and out.count("EXTEND: 1 steps") == 2  # rank 0 alone says something
    assert len(list(tmp_path.glob("*TP-0-*.json.gz"))) == 4 == len(list(tmp_path.glob("*.json.gz")))
    assert "Correct: no token's log-probability differs" in checks and checks.count("after 4 reused tokens") == 3


def test_a_rank_that_ends(tmp_path):
    running = start_ranks(tmp_path, "--input-len", "20", "--output-len", "3000")
    for line in running.stdout:
        if line.startswith("Benchmark."):
            break
    [rank] = children_of(running.pid)
    rank.kill()
    _, error = running.communicate(timeout=30)
    assert running.returncode == 1 and "error: " in error
    assert "rank 1 process was killed by SIGKILL" in error or "has lost another rank" in error, error
    assert "Traceback" not in error


def test_help(capsys):
    with pytest.raises(SystemExit):
        bench_one_batch.main(["--help"])
    out = capsys.readouterr().out
    assert "--correctness-test" in out
    assert "--cuda-graph-max-bs" in out


def test_profile(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SGLANG_TORCH_PROFILER_DIR", str(tmp_path / "traces"))
    monkeypatch.chdir(tmp_path)
    flags = ["--input-len", "12", "--output-len", "4", "--profile", "--chunked-prefill-size", "6"]
    assert bench_one_batch.main(flags) == 0
    assert len((tmp_path / "result.jsonl").read_text().splitlines()) == 1  # the default file
    names = sorted(os.listdir(tmp_path / "traces"))
    tables = [stage_table(str(tmp_path / "traces" / name)) for name in names]
    assert [(table.stage, table.steps) for table in tables] == [("DECODE", 3), ("EXTEND", 2)]
    out = capsys.readouterr().out
    assert "EXTEND: 2 steps, CPU ops busy" in out
    assert "aten::mm" in out


def test_correctness_test_passes(capsys):
    assert (
        bench_one_batch.main(["--correctness-test", "--dtype", "float32", "--cut-len", "3", "--output-len", "4"]) == 0
    )
    out = capsys.readouterr().out
    assert "Correct: no token's log-probability differs by more than 0.001." in out
    assert out.count("after 3 reused tokens") == 3
    texts = re.findall(r"(?:whole|after 3 reused tokens): \[[\d, ]+\] (.+)", out)  # there is a tokenizer
    assert len(texts) == 6 and texts[::2] == texts[1::2] and len(set(texts)) == 3


def test_correctness_test_finds_a_spoilt_prefix(capsys):
    bench = Bench(args(skip_tokenizer_init=True))
    check = PrefixCheck(bench, cut_len=4, output_len=6)
    assert check.run()
    submit = bench.worker.submit

    def spoil(step):
        pending = submit(step)
        if step.num_extends and (step.extend_lens == 4).all():  # the prefixes
            bench.worker.runner.kv_pool.buffer.normal_()
        return pending

    bench.worker.submit = spoil
    capsys.readouterr()
    assert not check.run()
    assert "prompt 0: output token" in capsys.readouterr().out
    bench.kv.check_idle()


def answer(*tops: list[tuple[float, int]]) -> list[TokenLogprob]:
    return [TokenLogprob(top[0][0], top, None) for top in tops]


def test_comparison():
    a = answer([(-0.1, 5), (-2.0, 6)], [(-0.5, 7), (-0.6, 8)], [(-0.2, 9), (-3.0, 5)])
    assert compare(a, a, 0.0) == (0.0, "")
    near = answer([(-0.15, 5), (-2.5, 6)], [(-0.5, 7), (-0.6, 8)], [(-0.2, 9), (-3.0, 5)])
    largest, problem = compare(a, near, 0.06)
    assert (round(largest, 6), problem) == (0.05, "")
    assert "output token 0: its log-probability differs by 0.0500" in compare(a, near, 0.04)[1]
    # As likely as each other: the texts go different ways from there.
    tie = answer([(-0.1, 5), (-2.0, 6)], [(-0.5, 8), (-0.6, 7)], [(-9.0, 1), (-9.5, 2)])
    assert compare(a, tie, 0.2) == (0.0, "")
    assert compare(a, tie, 0.05) == (0.0, "output token 1 is 7 and then 8")
    unknown = answer([(-0.1, 4), (-2.0, 6)])
    assert compare(a[:1], unknown, 5.0) == (0.0, "output token 0 is 5 and then 4")


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
