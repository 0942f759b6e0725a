"""report.py: the pages follow the records, --check notices when one does not, prose stays, bad files are named."""

import json
import re
import sys
from pathlib import Path

import pytest

from sglang.test.ci.ci_register import register_cpu_ci

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmark"))
import report
import report_targets
from report_targets import DETERMINISTIC, MODEL, TARGETS

register_cpu_ci(est_time=3, suite="unit-test-cpu")

RATE = {"kind": "serving", "name": "rate 8, up to 64 at once", "num_prompts": 80, "input_len": 1024}
RATE |= {"output_len": 256, "request_rate": 8.0, "max_concurrency": 64}
FLAGS = ["--model-path", MODEL, "--load-format", "dummy"]
PAGE = f"# Performance\n\nBefore.\n\n{report.BEGIN}\n{report.END}\n\n## By hand\n\nAfter.\n"


def record(set_name: str = "all on", repeat: int = 0, study: str = "seed_table", **changes) -> dict:
    env = {} if set_name == "all on" else {"SGLANG_DISABLE_MOE_CONFIGS": "1"}
    meta = {"hardware": "NVIDIA H200", "driver": "570.1", "torch": "2.11.0", "triton": "3.6.0", "commit": "abc"}
    meta |= {"build": "b", "builds": ["b"], "command": "python x.py", "date": "2030-01-02T03:04:05+00:00"}
    times = {f"{which}_{n}_ms": 15.0 for which in ("mean", "median", "p99") for n in ("ttft", "tpot", "itl")}
    result = {"output_throughput": 1650.0, "total_throughput": 8000.0, **times, **changes.pop("result", {})}
    return {
        "study": study,
        "set": {"name": set_name, "env": env, "flags": changes.pop("flags", [])},
        "server_flags": changes.pop("server_flags", FLAGS),
        "workload": RATE | changes.pop("workload", {}),
        "repeat": repeat,
        "seed": 1,
        "warmup": 16,
        "meta": meta | changes,
        "result": result,
        "error": None,
    }


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


class Site:
    def __init__(self, folder: Path):
        self.results, self.page = folder / "results", folder / "docs" / "performance.md"
        self.results.mkdir()
        self.page.parent.mkdir()
        self.page.write_text(PAGE)

    def add(self, name: str, records: list[dict]) -> None:
        path = self.results / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))

    def run(self, *flags: str) -> int:
        return report.main(["--results", str(self.results), "--page", str(self.page), *flags])

    def text(self) -> str:
        return self.page.read_text()

    def card(self, name: str = "h200") -> str:
        return (self.results / name / "README.md").read_text()


def read(figure: str, workload: str, records: list[dict]) -> dict[str, float]:
    (target,) = [t for t in TARGETS if (t.workload, t.figure) == (workload, figure)]
    return report.measured(target, records)


def test_without_results_the_page_says_so(site):
    assert site.run("--check") == 1
    assert site.run() == 0
    text = site.text()
    assert "| one at a time | median TPOT ms | 4.81 | – | 1.83 | 2.7, then 2.2 |" in text
    assert text.startswith("# Performance\n\nBefore.\n") and text.endswith("\n## By hand\n\nAfter.\n")
    assert (site.page.parent / "img" / "floors.png").read_bytes().startswith(b"\x89PNG")
    assert site.run("--check") == 0


def test_records_become_tables_with_their_own_facts(site, capsys):
    site.add(
        "h200/pull/records.jsonl",
        [record("PR's three off"), record("all on"), record("PR's three off", 1), record("all on", 1)],
    )
    assert site.run("--check") == 1 and site.run("--no-chart") == 0
    card, text = site.card(), site.text()
    assert card.startswith("# NVIDIA H200: every run\n") and card.endswith("on both sides of 1.\n")
    assert "\n## pull: two settings under the pull request's workload\n" in card
    facts = "driver 570.1, torch 2.11.0, triton 3.6.0, commit abc, 2030-01-02. Records: [pull/records.jsonl]"
    assert facts + "(pull/records.jsonl). Command: `python x.py`" in card.replace("\n", " ")
    assert "| output tok/s | 1650 (1650–1650) | 1650 (1650–1650) | 1.000 (1.000–1.000) ~ | 1.033 |" in card
    assert all(len(line) <= 120 for line in card.splitlines() if not line.startswith("|"))
    assert "target | ours, NVIDIA H200 |" in text and "every run" not in text
    assert "| median TPOT ms | 20.5 | 16.62 | 12 | 14.0, then 13.0 | 15.00 |" in text
    assert not (site.page.parent / "img").exists()
    assert site.run("--check") == 0
    site.add("h200/pull/records.jsonl", [record("PR's three off"), record("all on", result={"median_tpot_ms": 12.5})])
    capsys.readouterr()
    assert site.run("--check") == 1
    old = capsys.readouterr().err.splitlines()
    assert [line.partition(" is out of date: run python benchmark/report.py")[0] for line in old] == [
        str(site.page),
        str(site.results / "h200/README.md"),
    ]
    assert site.run("--no-chart") == 0 and "| 12.50 |" in site.text()
    assert site.text().count("## By hand") == 1


def test_an_ablation_and_an_unpaired_setting_are_shown(site):
    both = [record("all on", study="ablation"), record("without tuned expert tiles", study="ablation")]
    site.add("h200/a/records.jsonl", both)
    site.add("h200/b/records.jsonl", [record("PR's three off")])
    assert site.run("--no-chart") == 0
    assert "\n## a: what each optimization is worth\n" in site.card()
    assert "| rate 8, up to 64 at once: median TPOT ms | 15.00 | 1.000 |" in site.card()
    assert "(not measured yet)" in site.card()


def test_each_card_has_a_page_of_its_own(site):
    site.add("h200/a/records.jsonl", [record("all on", study="ablation")])
    site.add("h100/a/records.jsonl", [record("all on", study="ablation", hardware="NVIDIA H100")])
    assert site.run("--no-chart") == 0
    assert site.card("h100").startswith("# NVIDIA H100: every run") and "H200" not in site.card("h100")
    assert "| ours, NVIDIA H100 | ours, NVIDIA H200 |" in site.text()


@pytest.mark.parametrize("name", ["records.jsonl", "h200/records.jsonl"])
def test_records_outside_a_runs_folder_are_refused(site, capsys, name):
    site.add(name, [record()])
    assert site.run("--no-chart") == 1 and site.text() == PAGE
    assert f"{name} must lie in its run's folder in its card's" in capsys.readouterr().err


def test_the_server_as_it_is_and_rounds_of_speculation(site):
    meta = record()["meta"]
    times = {"batch_size": 8, "plain": 10.0, "draft": 3.0, "verify": 20.0, "round": 23.0, "break_even": 2.3}
    site.add("h200/a/records.jsonl", [record("all on", study="ablation")])
    site.add("h200/b/records.jsonl", [{"study": "speculation_steps", "meta": meta} | times])
    assert site.run("--no-chart") == 0
    assert "\n## a: the server as it is\n" in site.card()
    assert "\n## b: rounds of speculation beside plain decode steps\n\ndriver 570.1" in site.card()
    assert "| 8 | 10.00 | 3.00 | 20.00 | 23.00 | 2.30 |" in site.card()


def test_only_the_plain_server_counts_as_ours():
    rate = ("median TPOT ms", "8 a second, 64 at once")
    assert read(*rate, [record()]) == {"NVIDIA H200": 15.0}
    assert read(*rate, [record("PR's three off")]) == {}
    assert read(*rate, [record(flags=["--attention-backend", "torch_native"])]) == {}
    assert read(*rate, [record(server_flags=["--model-path", "other"])]) == {}
    assert read(*rate, [record(workload={"num_prompts": 79})]) == {}
    assert read(*rate, [record(server_flags=[*FLAGS, "--tp-size", "2"])]) == {}
    fixed = record(flags=[DETERMINISTIC])
    assert read(*rate, [fixed]) == {}
    assert read("median TPOT ms", "deterministic, 8 a second, 64 at once", [fixed, record()]) == {"NVIDIA H200": 15.0}


def test_the_newest_build_of_each_card_counts():
    def tpot(value: float, **meta) -> dict:
        return record(result={"median_tpot_ms": value}, **meta)

    old = [
        tpot(30.0, build="a", builds=["a"], date="2030-01-01"),
        tpot(31.0, build="a", builds=["a"], date="2030-01-01"),
    ]
    new = [tpot(value, date="2030-01-02") for value in (14.0, 16.0, 13.0)]
    other = tpot(20.0, hardware="NVIDIA H100", date="2029-01-01")
    found = read("median TPOT ms", "8 a second, 64 at once", new + old + [other])
    assert found == {"NVIDIA H200": 14.0, "NVIDIA H100": 20.0}


def test_static_batches_and_starts_are_read():
    rows = [{"batch_size": 8, "median_decode_latency": 0.0068, "prefill_throughput": 66000.0}]
    batches = record(workload={"kind": "one_batch"}, result={"batches": rows})
    assert read("decode step ms", "static batch of 8", [batches]) == {"NVIDIA H200": pytest.approx(6.8)}
    assert read("prefill tok/s", "static batch of 8", [batches]) == {"NVIDIA H200": 66000.0}
    assert read("decode step ms", "static batch of 64", [batches]) == {}
    start = record(workload={"kind": "cold_start"}, result={"ready_seconds": 40.0})
    assert read("s", "start to ready, no compiled kernels", [start]) == {"NVIDIA H200": 40.0}


def test_distances_to_floors():
    def target(workload: str, figure: str) -> report_targets.Target:
        return next(t for t in TARGETS if (t.workload, t.figure) == (workload, figure))

    assert target("static batch of 8", "prefill tok/s").times_floor(39_500) == 2.0  # half of what is possible
    assert target("static batch of 8", "decode step ms").times_floor(11.4) == 2.0
    rows = report.floor_rows([{"NVIDIA H200": 24.0} if t.published == 16.62 else {} for t in TARGETS])
    assert rows["8 a second, 64 at once: median TPOT ms"]["ours, NVIDIA H200"] == 2.0
    assert "start to ready, no compiled kernels: s" not in rows  # it has no floor


def test_other_jsonl_files_are_told_and_left_out(site, capsys):
    site.add("questions.jsonl", [{"question": "6 * 7?"}])
    assert site.run("--no-chart") == 0
    assert "questions.jsonl is left out" in capsys.readouterr().err and "ours" not in site.text()


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "r.jsonl: line 1: "), ("[]", "r.jsonl: line 1 is not a JSON object"), ('{"study": "ablation"}', "without")],
)
def test_a_malformed_file_changes_nothing(site, capsys, line, message):
    (site.results / "r.jsonl").write_text(line + "\n")
    assert site.run("--no-chart") == 1
    assert message in capsys.readouterr().err and site.text() == PAGE


@pytest.mark.parametrize(
    "page", ["no markers", f"{report.END}\n{report.BEGIN}", PAGE + report.BEGIN, PAGE + report.END]
)
def test_a_page_without_clear_markers_is_left_alone(site, capsys, page):
    site.page.write_text(page)
    assert site.run("--no-chart") == 1
    assert "the page must have the lines" in capsys.readouterr().err and site.text() == page


def test_a_missing_page_and_missing_matplotlib(site, capsys, monkeypatch):
    site.page.unlink()
    assert site.run("--check") == 1 and "performance.md" in capsys.readouterr().err
    monkeypatch.setattr(report.study_charts, "can_draw", lambda: False)
    with pytest.raises(SystemExit) as stop:
        site.run()
    assert stop.value.code == 2 and "charts need matplotlib" in capsys.readouterr().err


def test_the_pages_of_this_repository_are_up_to_date():
    assert report.main(["--check"]) == 0
    assert (report.REPOSITORY / "docs" / "img" / "floors.png").exists()


def test_pages_that_the_code_points_at_have_those_headings():
    sources = (report.REPOSITORY / "python" / "sglang").rglob("*.py")
    texts = [re.sub(r"\n\s*#? *", " ", path.read_text(encoding="utf-8")) for path in sources]
    pointers = {found for text in texts for found in re.findall(r"\b(benchmark/[\w/]+\.md)(?:, \"([^\"]+)\")?", text)}
    assert len(pointers) >= 5 and not any("docs/performance.md" in text for text in texts)
    for page, heading in pointers:
        assert f"\n## {heading}\n" in (report.REPOSITORY / page).read_text(encoding="utf-8"), (page, heading)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
