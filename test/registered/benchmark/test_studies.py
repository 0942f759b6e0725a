"""seed_table.py and ablation.py with a server and benchmarks that only pretend: order, what is saved, how they end."""

import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import wait_for

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmark" / "gemma4"))
import ablation
import seed_table
import serving_runs
import study
import study_charts
from optimizations import KEPT_BY_PULL_REQUEST, OPTIMIZATIONS, TOGETHER, Optimization, switched_off
from serving_runs import Commands, Setting
from study import Step, interleave
from study_cli import parse_setting
from workloads import Serving

register_cpu_ci(est_time=27, suite="base-a-test-cpu", mostly_waits=True)

GEMMA4 = Path(ablation.__file__).parent

SERVER = """
import http.server, os, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            print("CUDA error: an illegal memory access", flush=True)
            os._exit(3)
        body = os.environ.get("FAKE_SPEED", "1").encode() if self.path == "/speed" else b""
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass

port = int(sys.argv[sys.argv.index("--port") + 1])
with open(os.environ["FAKE_LOG"], "a") as log:
    print("start", os.environ.get("FAKE_SPEED", "1"), os.getpid(), *sys.argv[1:], file=log)
if "--broken" in sys.argv:
    sys.exit("error: no such flag: --broken")
if "--large" in sys.argv:
    print("INFO: starting", file=sys.stderr)
    print("error: the model does not fit: 50.9 GB", file=sys.stderr)
    sys.exit(2)
if "--deaf" in sys.argv:
    import time
    time.sleep(600)
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
BENCH = """
import json, os, sys, time, urllib.error, urllib.request

flags = dict(zip(sys.argv[1:], sys.argv[2:]))
url = f"http://127.0.0.1:{flags['--port']}"
seed, speed = int(flags["--seed"]), float(urllib.request.urlopen(url + "/speed").read())
with open(os.environ["FAKE_LOG"], "a") as log:
    print("run", speed, seed, flags["--num-prompts"], flags["--request-rate"], flags["--max-concurrency"], file=log)
if str(seed) == os.environ.get("FAKE_HANG_AT"):
    time.sleep(600)
record = {"output_throughput": 100 * speed, "total_throughput": 500 * speed, "failed": 0}
record["server_info"] = {"version": "1", "model_path": "/secret/place"}
for name in ("e2e_latency", "ttft", "tpot", "itl"):
    record |= {f"{which}_{name}_ms": seed / speed for which in ("mean", "median", "p99")}
failing = str(seed) == os.environ.get("FAKE_FAIL_AT")
with open(flags["--output-file"], "a") as file:
    print(json.dumps(record | {"failed": int(failing)}), file=file)
if str(seed) == os.environ.get("FAKE_DIE_AT"):
    try:
        urllib.request.urlopen(url + "/die")
    except (urllib.error.URLError, ConnectionError):
        sys.exit("error: the server is gone")
sys.exit("error: 1 of 80 requests failed" if failing else 0)
"""
ONE_BATCH = """
import json, os, sys

at = sys.argv.index("--batch-size")
sizes = [int(word) for word in sys.argv[at + 1 : sys.argv.index("--run-name")]]
speed = float(os.environ.get("FAKE_SPEED", "1"))
with open(sys.argv[sys.argv.index("--result-filename") + 1], "a") as file:
    for size in sizes:
        ms = size / 1000 / speed
        print(json.dumps({"batch_size": size, "median_decode_latency": ms, "prefill_latency": 2 * ms}), file=file)
"""
KERNEL = """
import json, sys

with open(sys.argv[-1], "a") as file:
    for kernel in ("fused experts", "extend attention", "qkv norm, sliding"):
        for case in ("32 tokens", "64 tokens", "sliding, 8 x 1024 tokens"):
            print(json.dumps({"kernel": kernel, "case": case, "us": 10.0, "off_us": 15.0, "floor_us": 5.0}), file=file)
"""
SETS = ["--a", "slow: FAKE_SPEED=1", "--b", "fast: FAKE_SPEED=2 --page-size 1"]


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """fake(main, *flags): its exit code; `.out` is the output folder."""
    return Fake(tmp_path, monkeypatch)


class Fake:
    def __init__(self, folder: Path, monkeypatch):
        self.log_path, self.out = folder / "log", folder / "out"
        monkeypatch.setenv("FAKE_LOG", str(self.log_path))
        self.env = monkeypatch.setenv
        monkeypatch.setattr(serving_runs, "DEATH_SECONDS", 1.0)
        words = {}
        for name, text in {"server": SERVER, "serving": BENCH, "one_batch": ONE_BATCH, "kernel": KERNEL}.items():
            (folder / f"{name}.py").write_text(text)
            words[name] = (sys.executable, str(folder / f"{name}.py"))
        self.commands = Commands(**words)

    def __call__(self, main, *flags: str) -> int:
        own, server = (flags[: flags.index("--")], flags[flags.index("--") :]) if "--" in flags else (flags, ())
        return main([*own, "--output-dir", str(self.out), *server], self.commands)

    def log(self, kind: str) -> list[list[str]]:
        lines = self.log_path.read_text().splitlines() if self.log_path.exists() else []
        return [line.split()[1:] for line in lines if line.startswith(kind)]

    def records(self) -> list[dict]:
        return [json.loads(line) for line in (self.out / "records.jsonl").read_text().splitlines()]

    def none_is_left(self) -> bool:
        return not any(psutil.pid_exists(int(start[1])) for start in self.log("start"))


def usage_error(capsys, main, *flags: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(flags))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("usage: ")
    return error.splitlines()[-1]


def names(plan: list[Step]) -> str:
    return " ".join(f"{step.setting.name}{step.repeat}" for step in plan)


def test_settings_take_turns():
    a, b, load = Setting("A"), Setting("B"), Serving(1, 1, 2, None, 1)
    assert names(interleave([a, b], [load], 3, 1)) == "A0 B0 A1 B1 A2 B2"
    pairs = interleave([a, b], [load], 3, 2)
    assert names(pairs) == "A0 A1 B0 B1 A2 B2"
    assert [step.start for step in pairs] == [0, 0, 0, 0, 2, 2]
    alive = interleave([a, b], [load], 2, 1, keep_alive=True)
    assert names(alive) == "A0 B0 A1 B1" and {step.start for step in alive} == {0}


def test_a_setting_is_a_name_an_environment_and_flags():
    assert parse_setting("my set: X=1 Y=a:b --flag 'two words'", "A") == Setting(
        "my set", {"X": "1", "Y": "a:b"}, ("--flag", "two words")
    )
    assert parse_setting("on:", "A") == Setting("on")
    assert parse_setting("--chat-template a: --x", "A") == Setting("A", {}, ("--chat-template", "a:", "--x"))
    with pytest.raises(ValueError, match="word is neither NAME=value nor a --flag"):
        parse_setting("X=1 word", "A")
    with pytest.raises(ValueError, match="--port is given to the servers by this script"):
        parse_setting("--port=1", "A")


def test_seed_table_runs_both_and_writes_records_table_and_chart(fake, capsys):
    flags = ["--repeats", "2", "--seed", "10", "--warmup-prompts", "3", "--request-rate", "8"]
    assert fake(seed_table.main, *SETS, *flags, "--", "--max-total-tokens", "9") == 0
    assert [run[:3] for run in fake.log("run")] == [
        ["1.0", str(study.WARMUP_SEED), "3"],
        ["1.0", "10", "80"],
        ["2.0", str(study.WARMUP_SEED), "3"],
        ["2.0", "10", "80"],
        ["1.0", str(study.WARMUP_SEED), "3"],
        ["1.0", "11", "80"],
        ["2.0", str(study.WARMUP_SEED), "3"],
        ["2.0", "11", "80"],
    ]
    assert {tuple(run[3:]) for run in fake.log("run")} == {("8.0", "64"), ("inf", "64")}
    starts = [" ".join(start) for start in fake.log("start")]
    assert len(starts) == 4 and all("--load-format dummy" in s and "--max-total-tokens 9" in s for s in starts)
    assert ["--page-size 1" in s for s in starts] == [False, True, False, True]
    text = (fake.out / "table.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert "| output tok/s | 100.0 (100.0–100.0) | 200.0 (200.0–200.0) | 2.000 (2.000–2.000) |" in text
    assert "| median TTFT ms | 10.50 (10.00–11.00) | 5.250 (5.000–5.500) | 0.500 (0.500–0.500) |" in text
    assert "PR #26588" not in text  # it measured other settings
    assert (fake.out / "chart.png").read_bytes().startswith(b"\x89PNG")
    first = fake.records()[0]
    assert first["set"] == {"name": "slow", "env": {"FAKE_SPEED": "1"}, "flags": []}
    assert "/secret/place" not in json.dumps(first) and first["result"]["server_info"] == {"version": "1"}
    assert first["server_flags"][1] == "benchmark/gemma4/configs/26b-a4b"
    assert first["meta"]["command"].startswith("python ") and first["meta"]["torch"]
    assert fake.none_is_left()


def test_the_default_sets_are_the_pull_requests(fake):
    assert fake(seed_table.main, "--repeats", "1", "--warmup-prompts", "0", "--no-chart") == 0
    off, on = fake.records()
    assert (off["set"]["name"], off["set"]["env"]) == ("PR's three off", switched_off(KEPT_BY_PULL_REQUEST))
    assert (on["set"]["name"], on["set"]["env"]) == ("all on", {})
    assert "PR #26588, patched, its own figures | 1671 | 74.04 | 16.62 | 4339" in (fake.out / "table.md").read_text()
    assert not (fake.out / "chart.png").exists()


def test_starts_can_be_shared(fake):
    flags = [*SETS, "--repeats", "2", "--warmup-prompts", "0", "--no-chart"]
    assert fake(seed_table.main, *flags, "--repeats-per-start", "2") == 0
    assert [(run[0], run[1]) for run in fake.log("run")] == [("1.0", "1"), ("1.0", "2"), ("2.0", "1"), ("2.0", "2")]
    assert len(fake.log("start")) == 2
    fake.out = fake.out / "alive"
    assert fake(seed_table.main, *flags, "--keep-alive") == 0
    assert [(run[0], run[1]) for run in fake.log("run")][4:] == [("1.0", "1"), ("2.0", "1"), ("1.0", "2"), ("2.0", "2")]
    assert len(fake.log("start")) == 4 and fake.none_is_left()


def test_resume_does_what_is_missing_of_the_same_configuration(fake, capsys):
    flags = [*SETS, "--warmup-prompts", "0", "--no-chart"]
    assert fake(seed_table.main, *flags, "--repeats", "1") == 0
    assert "exists: go on with --resume" in usage_error(capsys, seed_table.main, *flags, "--output-dir", str(fake.out))
    assert fake(seed_table.main, *flags, "--repeats", "2", "--resume") == 0
    assert [run[1] for run in fake.log("run")] == ["1", "1", "2", "2"]
    assert "(2.000–2.000)" in (fake.out / "table.md").read_text()  # over both repeats
    assert fake(seed_table.main, *flags, "--repeats", "2", "--resume") == 0
    assert len(fake.log("run")) == 4
    assert fake(seed_table.main, *flags, "--repeats", "1", "--resume", "--input-len", "9") == 0
    assert len(fake.log("run")) == 6  # other lengths are another configuration
    lines = fake.records()
    for line in lines:
        line["meta"]["build"] = line["meta"]["builds"] = "older code"
    (fake.out / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert fake(seed_table.main, *flags, "--repeats", "1", "--resume") == 0
    assert len(fake.log("run")) == 8
    assert [r["meta"]["build"] == "older code" for r in study.current(fake.records())] == [False, False]


def test_a_broken_records_file_is_named_and_kept(fake, capsys):
    fake.out.mkdir()
    (fake.out / "records.jsonl").write_text('{"study": "seed_table"}\n{"stu')
    assert fake(seed_table.main, *SETS, "--resume", "--no-chart") == 1
    assert "records.jsonl: line 2" in capsys.readouterr().err
    assert (fake.out / "records.jsonl").read_text().endswith('{"stu') and not fake.log("start")


def test_the_time_budget_ends_it_before_a_repeat_that_would_not_fit(fake, capsys, monkeypatch):
    now = itertools.count(0, 10)  # each look at the clock is 10 s later: a repeat takes 10, the way to the next 10
    monkeypatch.setattr(study, "monotonic", lambda: next(now))
    flags = [*SETS, "--repeats", "3", "--warmup-prompts", "0", "--no-chart"]
    assert fake(seed_table.main, *flags, "--time-budget-seconds", "45") == 0
    assert [run[0] for run in fake.log("run")] == ["1.0", "2.0"]  # a third would end after 60
    out = capsys.readouterr().out
    assert "The time budget of 45 s is spent" in out
    assert "slow: rate 8, up to 64 at once, repeat 2, 3" in out and "fast: rate 8, up to 64 at once, repeat 2, 3" in out
    assert "2.000" in (fake.out / "table.md").read_text() and fake.none_is_left()


def test_a_server_that_does_not_start_is_quoted(fake, capsys):
    sets = ["--a", "good: FAKE_SPEED=1", "--b", "bad: --broken"]
    assert fake(seed_table.main, *sets, "--repeats", "1", "--warmup-prompts", "0", "--no-chart") == 1
    error = capsys.readouterr().err
    assert "error: bad: rate 8, up to 64 at once, repeat 1: the server of 'bad' ended with exit code 1" in error
    assert "error: no such flag: --broken" in error
    assert len(fake.records()) == 1 and "good" in (fake.out / "table.md").read_text()
    assert fake.none_is_left()


def test_what_the_server_refuses_is_refused_in_its_line(fake, capsys):
    """A model that memory does not hold, say: exit code 2, and nothing else on stderr."""
    assert fake(seed_table.main, "--a", "large: --large", "--b", "good:", "--no-chart") == 2
    assert capsys.readouterr().err == "error: the model does not fit: 50.9 GB\n"
    assert not (fake.out / "records.jsonl").exists() and fake.none_is_left()


def test_a_server_that_never_gets_ready_is_given_up(fake, capsys):
    sets = ["--a", "deaf: --deaf", "--b", "good:"]
    assert fake(seed_table.main, *sets, "--timeout-seconds", "1", "--no-chart") == 1
    assert "the server of 'deaf' is not ready after 1 s" in capsys.readouterr().err
    assert fake.none_is_left() and not (fake.out / "table.md").exists()


@pytest.mark.parametrize(
    ("variable", "message"),
    [("FAKE_FAIL_AT", "1 of 80 requests failed"), ("FAKE_DIE_AT", "the server of 'slow' ended with exit code 3")],
)
def test_a_run_that_fails_ends_it_with_what_there_is(fake, capsys, variable, message):
    fake.env(variable, "2")
    assert fake(seed_table.main, *SETS, "--repeats", "3", "--warmup-prompts", "0", "--no-chart") == 1
    error = capsys.readouterr().err
    assert message in error and ("illegal memory access" in error) == (variable == "FAKE_DIE_AT")
    assert [bool(record["error"]) for record in fake.records()] == [False, False, True]
    assert "2.000" in (fake.out / "table.md").read_text() and fake.none_is_left()
    fake.env(variable, "0")
    assert fake(seed_table.main, *SETS, "--repeats", "2", "--warmup-prompts", "0", "--no-chart", "--resume") == 0
    assert [run[1] for run in fake.log("run")] == ["1", "1", "2", "2", "2"]  # the failed one again


def test_a_failing_warmup_leaves_no_record(fake, capsys):
    fake.env("FAKE_FAIL_AT", str(study.WARMUP_SEED))
    assert fake(seed_table.main, *SETS, "--no-chart") == 1
    assert "warm-up: " in capsys.readouterr().err and not (fake.out / "records.jsonl").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_servers_and_keeps_what_there_is(fake, number):
    fake.env("FAKE_HANG_AT", "2")
    flags = [*SETS, "--warmup-prompts", "0", "--no-chart", "--output-dir", str(fake.out)]
    code = "import sys; sys.path.insert(0, sys.argv[1]); import seed_table; from serving_runs import Commands; "
    code += f"sys.exit(seed_table.main({flags!r}, {fake.commands!r}))"
    process = subprocess.Popen([sys.executable, "-c", code, str(GEMMA4)], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: ["1.0", "2", "80", "8.0", "64"] in fake.log("run"), 30)
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130 and "interrupted" in error
    assert len(fake.records()) == 2 and (fake.out / "table.md").exists() and fake.none_is_left()


def test_two_builds_are_told_apart(fake, tmp_path):
    flags = ["--repeats", "1", "--warmup-prompts", "0", "--no-chart"]
    for name in ("before", "after"):
        package = tmp_path / name / "python" / "sglang"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"name = {name!r}")
    roots = ["--a-path", str(tmp_path / "before"), "--b-path", str(tmp_path / "after")]
    assert fake(seed_table.main, *roots, *flags) == 0
    before, after = (record["meta"] for record in fake.records())
    assert before["build"] != after["build"] and before["builds"] == sorted([before["build"], after["build"]])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--a", "X=1"], "--a and --b go together"),
        (["--b-path", "."], "--a-path and --b-path"),
        (["--keep-alive", "--repeats-per-start", "2"], "leave --repeats-per-start out"),
        (["--a", "same:", "--b", "same:"], "both settings are called 'same'"),
        (["--a", "X=1", "--b", "stray"], "stray is neither"),
        (["--a-path", "/", "--b-path", "/"], "/ has neither python/sglang nor sglang"),
        (["--model-path", "/nowhere"], "/nowhere has no config.json"),
        (["--repeats", "0"], "must be at least 1, got 0"),
        (["--request-rate", "inf"], "must be above 0, got inf"),
        (["--", "--api-key", "k"], "--api-key is given to the servers by this script"),
    ],
)
def test_contradictory_flags_are_refused_before_anything_starts(capsys, tmp_path, flags, message):
    given = ["--no-chart", "--output-dir", str(tmp_path / "out"), *flags]
    assert message in usage_error(capsys, seed_table.main, *given)
    assert not (tmp_path / "out").exists()


def test_a_switch_that_is_set_here_is_refused(capsys, monkeypatch):
    monkeypatch.setenv("SGLANG_DISABLE_MOE_CONFIGS", "1")
    assert "SGLANG_DISABLE_MOE_CONFIGS is set here" in usage_error(capsys, seed_table.main, "--no-chart")


def test_missing_matplotlib_is_told_at_once(capsys, monkeypatch):
    monkeypatch.setattr(study_charts, "can_draw", lambda: False)
    assert "charts need matplotlib" in usage_error(capsys, seed_table.main)


def test_ablation_switches_off_one_at_a_time(fake):
    flags = ["--repeats", "1", "--warmup-prompts", "0", "--concurrency", "1", "4", "--one-batch", "1", "8", "--kernels"]
    assert fake(ablation.main, *flags, "--cold-start") == 0
    records, sets = fake.records(), 1 + len(OPTIMIZATIONS) + len(TOGETHER)
    kernels = [o for o in OPTIMIZATIONS if o.bench]
    assert [r["workload"]["kind"] for r in records] == (
        ["cold_start"] + ["serving"] * 3 * sets + ["one_batch"] * sets + ["kernel"] * len(kernels)
    )
    serving = [r for r in records if r["workload"]["kind"] == "serving"][::3]
    groups = [switched_off(optimizations) for optimizations in TOGETHER.values()]
    assert [r["set"]["env"] for r in serving] == [{}, *(o.env for o in OPTIMIZATIONS), *groups]
    assert groups[0].keys() == {"SGLANG_DISABLE_FUSED_ROUTER_NORM", "SGLANG_DISABLE_FUSED_TOPK_SOFTMAX"}
    assert [run[2:] for run in fake.log("run")[:3]] == [["80", "8.0", "64"], ["4", "inf", "1"], ["12", "inf", "4"]]
    text = (fake.out / "table.md").read_text()
    for row in ("rate 8, up to 64 at once: median TPOT ms", "concurrency 4: output tok/s", "cold start: ready after s"):
        assert f"| {row} | " in text
    assert f"| static batches: decode of 8 ms | 8.000 |{' 1.000 |' * (sets - 1)}" in text
    assert "| its kernel alone: time | – | 1.500: 10.00 → 15.00 us, 32 tokens |" in text
    assert (fake.out / "chart.png").exists() and fake.none_is_left()


def test_ablation_of_chosen_settings(fake, capsys):
    flags = ["--sets", "all on", "--repeats", "2", "--warmup-prompts", "0", "--no-chart"]
    assert fake(ablation.main, *flags) == 0
    assert [r["set"]["name"] for r in fake.records()] == ["all on", "all on"]
    assert "invalid choice: 'half'" in usage_error(capsys, ablation.main, "--sets", "half")


def test_optimizations_are_documented_and_their_benchmarks_exist():
    root = GEMMA4.parents[1]
    users = (root / "docs" / "users.md").read_text()
    for optimization in OPTIMIZATIONS:
        assert all(f"`{name}`" in users for name in optimization.env)
        if optimization.bench:  # not a choice between kernels
            assert "add_json_argument(parser)" in (root / optimization.bench[0]).read_text()
    assert len({o.name for o in OPTIMIZATIONS}) == len(OPTIMIZATIONS)


def test_a_later_optimization_is_one_more_row(fake):
    OPTIMIZATIONS.append(Optimization("something new", {"FAKE_SPEED": "0.5"}))
    try:
        assert fake(ablation.main, "--repeats", "1", "--warmup-prompts", "0", "--no-chart") == 0
    finally:
        OPTIMIZATIONS.pop()
    head, *rows = (fake.out / "table.md").read_text().splitlines()
    assert head.endswith("| without something new | without both router fusions | all off |")
    assert any(row.startswith("| rate 8, up to 64 at once: output tok/s | 100.0 |") for row in rows)
    assert any(row.endswith("| 0.500 | 1.000 | 0.500 |") for row in rows)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
