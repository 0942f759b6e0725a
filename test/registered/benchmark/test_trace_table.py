"""Tables of traces: sums, shares and self times by hand, and files that are no traces."""

import gzip
import json
import sys
from pathlib import Path

import pytest

from sglang import profiler
from sglang.srt.utils.trace_table import Event, Row, self_times, stage_table
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=2, suite="unit-test-cpu")


def event(cat: str, name: str, ts: float, dur: float, tid=1, ph="X") -> dict:
    return {"ph": ph, "cat": cat, "name": name, "pid": 7, "tid": tid, "ts": ts, "dur": dur, "args": {"External id": 3}}


GPU_TRACE = [
    {"ph": "M", "name": "process_name", "pid": "Spans", "tid": 0, "args": {"name": "python"}},
    event("user_annotation", "step 1 extend 0 decode 16 tokens", 0, 400),
    event("user_annotation", "step 1 extend 0 decode 8 tokens", 500, 400),
    event("gpu_user_annotation", "step 1 extend 0 decode 8 tokens", 500, 400),
    event("cpu_op", "aten::mm", 0, 9000),
    event("kernel", "gemm", 100, 3000),
    event("kernel", "norm", 3200, 500),
    event("kernel", "gemm", 4000, 1000),
    event("gpu_memcpy", "Memcpy HtoD", 5000, 100),
    event("gpu_memset", "Memset", 5300, 400),
    event("kernel", "half an event", 9000, 0, ph="B"),
]
CPU_TRACE = [
    event("cpu_op", "outer", 0, 1000),
    event("cpu_op", "inner", 100, 300),
    event("cpu_op", "innermost", 150, 50),
    event("cpu_op", "inner", 500, 200),
    event("cpu_op", "outer", 2000, 400),
    event("cpu_op", "inner", 0, 700, tid=2),  # beside the first outer one, on another thread
    event("python_function", "outer", 0, 5000),
]


def save(path: Path, events: list[dict]) -> str:
    data = json.dumps({"schemaVersion": 1, "traceEvents": events, "traceName": "x"}).encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return str(path)


def test_kernels_of_a_gpu(tmp_path):
    table = stage_table(save(tmp_path / "17.5-TP-0-DECODE.trace.json.gz", GPU_TRACE))
    assert (table.stage, table.kind, table.steps) == ("DECODE", "GPU kernels", 2)
    assert (table.busy_ms, table.span_ms) == (5.0, 5.6)
    assert table.rows == [
        Row("gemm", 2, 4.0, 0.8),
        Row("norm", 1, 0.5, 0.1),
        Row("Memset", 1, 0.4, 0.08),
        Row("Memcpy HtoD", 1, 0.1, 0.02),
    ]


def test_ops_of_a_cpu_count_without_those_inside(tmp_path):
    table = stage_table(save(tmp_path / "x.json", CPU_TRACE))
    assert (table.stage, table.kind, table.steps) == ("all steps", "CPU ops", 0)
    # outer: 1000 - 300 - 200 + 400; inner: 300 - 50 + 200 + 700; innermost: 50
    assert [(r.name, r.count, r.total_ms) for r in table.rows] == [
        ("inner", 3, 1.15),
        ("outer", 2, 0.9),
        ("innermost", 1, 0.05),
    ]
    assert table.busy_ms == pytest.approx(2.1)
    assert sum(r.share for r in table.rows) == pytest.approx(1)


def test_self_times_keep_the_order_and_take_ops_that_touch_for_neighbours():
    def op(ts: float, dur: float) -> Event:
        return Event(ph="X", name="a", cat="cpu_op", ts=ts, dur=dur)

    assert self_times([op(10, 5), op(0, 10), op(0, 20), op(20, 1)]) == [5, 10, 5, 1]
    assert self_times([]) == []


def test_text(tmp_path):
    path = save(tmp_path / "a-TP-0-EXTEND.trace.json.gz", [*GPU_TRACE, event("kernel", "k" * 200, 0, 1)])
    lines = stage_table(path).text(limit=2).splitlines()
    assert lines[0] == "EXTEND: 2 steps, GPU kernels busy 5.001 ms of 5.700 ms"
    assert lines[1].split() == ["name", "count", "total", "ms", "share"]
    assert lines[2].split() == ["gemm", "2", "4.000", "80.0%"]
    assert lines[3].split() == ["norm", "1", "0.500", "10.0%"]
    assert lines[4].split() == ["(3", "more)", "3", "0.501", "10.0%"]
    assert len(lines) == 5
    assert len({len(line) for line in stage_table(path).text(limit=9).splitlines()[1:]}) == 1  # long names are cut


def test_empty_trace(tmp_path):
    table = stage_table(save(tmp_path / "a.json", []))
    assert (table.busy_ms, table.span_ms, table.rows) == (0, 0, [])
    assert len(table.text(5).splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.json", b"no json"),
        ("a.json", b"[]"),
        ("a.json", b'{"traceEvents": 3}'),
        ("a.json", b'{"traceEvents": [{"ph": "X", "ts": "soon"}]}'),
        ("a.json", b"\xff\xfe"),
        ("a.json.gz", b"not compressed"),
        ("a.json.gz", gzip.compress(b"{}" * 500)[:-9]),
    ],
)
def test_what_is_no_trace(tmp_path, capsys, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    assert profiler.main(["--trace", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path} is no profiler trace: ")
    assert error.count("\n") == 1


def test_command_line(tmp_path, capsys):
    first = save(tmp_path / "a-TP-0-EXTEND.trace.json.gz", GPU_TRACE)
    second = save(tmp_path / "b.json", CPU_TRACE)
    assert profiler.main(["--trace", first, second, "--rows", "1"]) == 0
    out = capsys.readouterr().out
    assert out.index(first) < out.index("gemm") < out.index("(3 more)") < out.index(second) < out.index("inner")
    assert profiler.main(["--trace", first, "/no/such/file"]) == 1
    assert "/no/such/file: No such file" in capsys.readouterr().err
    for wrong in (["--rows", "0"], ["--num-steps", "x"], ["--timeout", "0"], ["--timeout", "inf"], ["--nonsense"]):
        with pytest.raises(SystemExit) as end:
            profiler.main(wrong)
        assert end.value.code == 2
        assert wrong[0] in capsys.readouterr().err


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
