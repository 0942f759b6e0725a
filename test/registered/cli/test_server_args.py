"""Every flag parses, round-trips and refuses; mistakes are one line and exit code 2; automatic values have reasons."""

import dataclasses
import logging
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from sglang.srt.arg_fields import all_flags, flag_of, kinds, specs
from sglang.srt.resolved_args import ResolvedArgs, default_chunked_prefill_size, resolve
from sglang.srt.server_args import ServerArgs, parse_with_server_args, prepare_server_args
from sglang.srt.unsupported_flags import AS_HERE, UNSUPPORTED, refusal
from sglang.srt.vllm_flags import VLLM
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=3, suite="unit-test-cpu")

# Field -> (text on the command line, value it means); switches have none.
GOOD = {
    "model_path": ("/m", "/m"),
    "tokenizer_path": ("/t", "/t"),
    "revision": ("v1.0", "v1.0"),
    "download_dir": ("/cache", "/cache"),
    "load_format": ("dummy", "dummy"),
    "context_length": ("2048", 2048),
    "dtype": ("float32", "float32"),
    "router_logits_dtype": ("float32", "float32"),
    "json_model_override_args": ('{"sliding_window": 8}', {"sliding_window": 8}),
    "served_model_name": ("gemma", "gemma"),
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("8000", 8000),
    "api_key": ("secret", "secret"),
    "max_connections": ("100", 100),
    "forwarded_allow_ips": ("10.0.0.0/8, ::1,*", "10.0.0.0/8, ::1,*"),
    "allowed_origins": ("https://a.example, https://b.example", "https://a.example, https://b.example"),
    "stream_interval": ("4", 4),
    "watchdog_timeout": ("30.5", 30.5),
    "chat_template": ("/c.jinja", "/c.jinja"),
    "default_chat_template_kwargs": ('{"enable_thinking": true}', {"enable_thinking": True}),
    "tool_call_parser": ("gemma4", "gemma4"),
    "grammar_backend": ("none", "none"),
    "reasoning_parser": ("none", "none"),
    "sampling_defaults": ("openai", "openai"),
    "preferred_sampling_params": ('{"temperature": 0}', {"temperature": 0}),
    "mem_fraction_static": ("0.8", 0.8),
    "max_running_requests": ("7", 7),
    "max_queued_requests": ("5", 5),
    "max_total_tokens": ("4096", 4096),
    "chunked_prefill_size": ("-1", -1),
    "max_prefill_tokens": ("100", 100),
    "prefill_max_requests": ("3", 3),
    "schedule_policy": ("lpm", "lpm"),
    "scheduler_recv_interval": ("16", 16),
    "kv_cache_dtype": ("float16", "float16"),
    "moe_runner_backend": ("triton", "triton"),
    "schedule_conservativeness": ("0.3", 0.3),
    "page_size": ("1", 1),
    "swa_full_tokens_ratio": ("0.1", 0.1),
    "radix_eviction_policy": ("lru", "lru"),
    "hicache_ratio": ("1.5", 1.5),
    "hicache_size": ("160", 160.0),
    "device": ("cpu", "cpu"),
    "attention_backend": ("torch_native", "torch_native"),
    "cuda_graph_max_bs": ("64", 64),
    "piecewise_cuda_graph_max_tokens": ("2048", 2048),
    "sampling_backend": ("pytorch", "pytorch"),
    "random_seed": ("42", 42),
    "log_level": ("debug", "debug"),
    "log_requests_level": ("3", 3),
    "decode_log_interval": ("1", 1),
    "tp_size": ("4", 4),
    "nnodes": ("1", 1),
    "node_rank": ("0", 0),
    "dist_init_addr": ("10.0.0.1:5000", "10.0.0.1:5000"),
    "speculative_algorithm": ("NEXTN", "NEXTN"),
    "speculative_draft_model_path": ("/d", "/d"),
    "speculative_draft_model_revision": ("main", "main"),
    "speculative_num_steps": ("5", 5),
    "speculative_eagle_topk": ("3", 3),
    "speculative_num_draft_tokens": ("12", 12),
    "speculative_position_rule": ("n-1", "n-1"),
}
BAD = {
    "load_format": "pt",
    "context_length": "0",
    "dtype": "int8",
    "router_logits_dtype": "bfloat16",
    "json_model_override_args": "[1]",
    "host": "",
    "port": "70000",
    "max_connections": "0",
    "forwarded_allow_ips": "10.0.0.1,proxy",
    "stream_interval": "0",
    "watchdog_timeout": "nan",
    "default_chat_template_kwargs": "{",
    "sampling_defaults": "none",
    "preferred_sampling_params": '{"temprature": 1}',
    "mem_fraction_static": "1.5",
    "max_running_requests": "-3",
    "max_queued_requests": "x",
    "max_total_tokens": "1.5",
    "chunked_prefill_size": "0",
    "max_prefill_tokens": "0",
    "prefill_max_requests": "0",
    "schedule_policy": "random",
    "scheduler_recv_interval": "0",
    "kv_cache_dtype": "fp8_e4m3",
    "moe_runner_backend": "flashinfer_cutlass",
    "schedule_conservativeness": "-1",
    "page_size": "16",
    "swa_full_tokens_ratio": "2",
    "radix_eviction_policy": "lfu",
    "hicache_ratio": "0",
    "hicache_size": "-1",
    "device": "xpu",
    "attention_backend": "fa3",
    "cuda_graph_max_bs": "0",
    "piecewise_cuda_graph_max_tokens": "0",
    "sampling_backend": "flashinfer",
    "random_seed": "-1",
    "log_level": "loud",
    "log_requests_level": "4",
    "decode_log_interval": "0",
    "tp_size": "0",
    "nnodes": "0",
    "node_rank": "-1",
    "dist_init_addr": "host:0",
    "speculative_algorithm": "EAGLE3",
    "speculative_draft_model_path": "",
    "speculative_num_steps": "0",
    "speculative_eagle_topk": "0",
    "speculative_num_draft_tokens": "1",
    "speculative_position_rule": "n+1",
}
MODEL = SimpleNamespace(
    context_len=4096, dtype="bfloat16", sliding_window=128, vocab_size=2048, architectures=["Gemma4ForCausalLM"]
)


def one_line_error(argv: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        prepare_server_args(argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    return error


def switches() -> list[str]:
    return [name for name, (kind, _) in kinds(ServerArgs).items() if kind is bool]


def test_the_tables_cover_every_field():
    assert set(GOOD) | set(switches()) == {f.name for f in dataclasses.fields(ServerArgs)}


@pytest.mark.parametrize("form", ["apart", "joined"])
@pytest.mark.parametrize("name", GOOD)
def test_a_field_parses_and_round_trips(name: str, form: str):
    text, value = GOOD[name]
    argv = [flag_of(name), text] if form == "apart" else [f"{flag_of(name)}={text}"]
    args = prepare_server_args(argv)
    assert getattr(args, name) == value
    assert ServerArgs.from_dict(args.to_dict()) == args == ServerArgs.from_kwargs(**{name: value})


@pytest.mark.parametrize("name", switches())
def test_a_switch(name: str):
    assert getattr(prepare_server_args([flag_of(name)]), name) is True
    assert not getattr(prepare_server_args([]), name)
    off = specs(ServerArgs)[name].off_flag
    if off:
        assert getattr(prepare_server_args([off]), name) is False


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_is_one_line_that_names_the_flag(name: str, capsys):
    assert flag_of(name) in one_line_error([f"{flag_of(name)}={BAD[name]}"], capsys)


@pytest.mark.parametrize(
    "argv,hint",
    [
        (["--modle-path", "x"], "did you mean --model-path?"),
        (["--schedule-policy", "lmp"], "did you mean lpm?"),
        (["--chunk-prefill-size", "5"], "did you mean --chunked-prefill-size?"),
        (["--zzzz"], "--help lists all flags"),
        (["stray"], "unexpected argument 'stray'"),
        (["--enable-mixed-chunk", "--disable-mixed-chunk"], "contradicts"),
        (["--enable-mixed-chunk", "--chunked-prefill-size", "-1"], "use --disable-mixed-chunk"),
        (["--disable-radix-cache", "--schedule-policy", "lpm"], "fcfs"),
        (["--disable-radix-cache", "--enable-hierarchical-cache"], "drop one of them"),
        (["--skip-tokenizer-init", "--chat-template", "x"], "--skip-tokenizer-init"),
        (["--disable-cuda-graph", "--cuda-graph-max-bs", "4"], "drop one of them"),
        (["--disable-cuda-graph", "--enable-piecewise-cuda-graph"], "drop one of them"),
        (["--enable-piecewise-cuda-graph", "--disable-piecewise-cuda-graph"], "contradicts"),
        (["--disable-cuda-graph", "--piecewise-cuda-graph-max-tokens", "64"], "contradicts --disable-cuda-graph"),
        (
            ["--disable-piecewise-cuda-graph", "--piecewise-cuda-graph-max-tokens", "64"],
            "contradicts --disable-piecewise-cuda-graph",
        ),
        (["--speculative-algorithm", "NEXTN", "--enable-mixed-chunk"], "drop one of them"),
    ],
)
def test_mistakes_name_the_way_out(argv: list[str], hint: str, capsys):
    assert hint in one_line_error(argv, capsys)


@pytest.mark.parametrize(
    "flag",
    [
        "--lora-paths",
        "--speculative-accept-threshold-single",
        "--dp-size",
        "--quantization",
        "--cuda-graph-bs",
    ],
)
def test_flags_of_upstream_are_refused_by_name(flag: str, capsys):
    assert f"{flag} is not supported" in one_line_error([flag, "2"], capsys)
    name = flag[2:].replace("-", "_")
    with pytest.raises(ValueError, match=name):
        ServerArgs.from_kwargs(**{name: 2})


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        (["--context-len", "2048"], "context_length", 2048),
        (["--mem-frac", "0.3"], "mem_fraction_static", 0.3),
        (["--max-total-token=1536"], "max_total_tokens", 1536),
        (["--speculative-alg", "NEXTN"], "speculative_algorithm", "NEXTN"),  # two spellings of one field
        (["--tp", "2"], "tp_size", 2),  # a whole name, though others begin with it
        (["--log-requests"], "log_requests", True),
        (["--disable-radix"], "disable_radix_cache", True),
    ],
)
def test_unique_beginnings_of_flags_are_taken(argv: list[str], field: str, value):
    assert getattr(prepare_server_args(argv), field) == value


def test_beginnings_that_are_refused(capsys):
    error = one_line_error(["--log-req", "1"], capsys)
    assert "--log-req could be" in error and "--log-requests-level" in error and "--log-requests-format" in error
    assert " more; write out the one you mean" in one_line_error(["--enable"], capsys)
    assert "--tool-serv: --tool-server is not supported" in one_line_error(["--tool-serv"], capsys)
    assert "unknown flag --" in one_line_error(["--"], capsys)
    assert "--context-length: expected an integer" in one_line_error(["--context-len", "x"], capsys)


def test_no_flag_is_both_taken_and_refused():
    assert not [flag for flag in all_flags(ServerArgs) if refusal(flag[2:].replace("-", "_"))]
    assert not UNSUPPORTED.keys() & VLLM.keys()


def test_what_is_wrong_is_told_at_once(capsys):
    """A command with three flags that are not taken had to be mended in three goes."""
    argv = ["--quantization", "fp8", "--port", "x", "--zzzz", "--max-model-len=64", "--dtype", "int4"]
    error = one_line_error(argv, capsys)
    for part in (
        "--quantization is not supported: weights are read",
        "unknown flag --zzzz; --help lists all flags",
        "--max-model-len is vLLM's name: here it is --context-length",
        "--port: expected an integer, got 'x'",
        "--dtype: 'int4' is not one of",
    ):
        assert part in error
    assert "'fp8'" not in error  # the value of a flag that is not taken is no mistake of its own
    assert "--quantization is not" in (error := one_line_error(["--quantization", "x", "--port"], capsys))
    assert "--port: expected one argument" in error


def test_flags_of_vllm_name_flags_that_there_are(capsys):
    for name in VLLM:
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", refusal(name)))
        assert named <= all_flags(ServerArgs), name
        assert refusal(name).startswith("is vLLM's") and (named or "leave it out" in refusal(name))
    for flag in ("--max-model-len", "--max_num_seqs", "--no-enable-prefix-caching"):
        error = one_line_error([flag, "1"], capsys)
        assert f"{flag} is vLLM's name: here it is --" in error and "did you mean" not in error


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("--prot", "--port"), ("--max_model_len", None), ("--trust_remote_code", "--trust-remote-code"),
     ("--max-seqs", None), ("--tensor-parallel", None), ("--ctx-size", None), ("--n-gpu-layers", None),
     ("--enable-flexkv-x", None), ("--max-batch-size", None), ("--max-input-tokens", None)],
)  # fmt: skip
def test_hints_are_for_slips_of_the_finger(typed: str, meant: str | None, capsys):
    """--max-num-seqs was told to be --max-queued-requests, which resembles it and means something else."""
    if typed == "--tensor-parallel":
        assert prepare_server_args([typed, "2"]).tp_size == 2
        return
    assert ("did you mean" in one_line_error([typed, "1"], capsys)) is (meant is not None)
    assert meant is None or f"did you mean {meant}?" in one_line_error([typed, "1"], capsys)


def test_values_of_upstream_and_vllm_that_mean_ours():
    for typed, held in (("half", "float16"), ("float", "float32"), ("bfloat16", "bfloat16")):
        assert prepare_server_args(["--dtype", typed]).dtype == held == ServerArgs.from_kwargs(dtype=typed).dtype
    assert prepare_server_args(["-tp", "2"]).tp_size == 2
    assert "half, float" not in one_line_error_of_value("dtype", "int8")


def one_line_error_of_value(name: str, value: str) -> str:
    with pytest.raises(ValueError) as e:
        ServerArgs.from_kwargs(**{name: value})
    return str(e.value)


def test_values_that_ask_for_what_is_done_anyway_are_taken(tmp_path, capsys):
    """--dp-size 1 and --tokenizer-mode auto were refused, though they change nothing."""
    argv = ["--dp-size", "1", "--port", "9", "--tokenizer-mode=auto", "--speculative-accept-threshold-acc", "1.0"]
    assert prepare_server_args(argv) == ServerArgs(port=9)
    assert ServerArgs.from_kwargs(dp_size=1, pp_size=1, cpu_offload_gb=0, port=9) == ServerArgs(port=9)
    file = tmp_path / "flags.yaml"
    file.write_text("dp-size: 1\nmodel_impl: sglang\nport: 9")
    assert prepare_server_args(["--config", str(file)]) == ServerArgs(port=9)
    for wrong in (["--dp-size", "2"], ["--dp-size"], ["--tokenizer-mode=slow"], ["--base-gpu-id", "1"]):
        assert " is not supported" in one_line_error(wrong, capsys)
    assert {name for name, _ in AS_HERE} <= UNSUPPORTED.keys()


@pytest.mark.parametrize("typed", ["auto", "bf16", "bfloat16", "float16", "float32"])
def test_the_kv_cache_has_the_models_type(typed: str):
    args = prepare_server_args(["--kv-cache-dtype", typed, "--dtype", "bfloat16"])
    if typed in ("float16", "float32"):
        with pytest.raises(ValueError, match=f"--kv-cache-dtype {typed}: the KV cache has the model's type, bfloat16"):
            resolve(args, MODEL, "cpu", memory_mib=1024)
    else:
        resolve(args, MODEL, "cpu", memory_mib=1024)


def test_remote_code_is_never_run_and_that_is_said(caplog):
    resolve(ServerArgs(trust_remote_code=True), MODEL, "cpu", memory_mib=1024)
    assert "--trust-remote-code has no effect: code from a checkpoint is never run" in caplog.text


YAML = """
# as upstream's users write it
model-path: /m
port: 8000
tp: 2
mem_fraction_static: 0.85
enable-metrics: true
log-requests: false
disable-mixed-chunk: true
enable-piecewise-cuda-graph: false
default-chat-template-kwargs: {enable_thinking: true}
dtype: half
api-key: null
"""


def test_flags_from_a_file(tmp_path):
    file = tmp_path / "server.yaml"
    file.write_text(YAML)
    args = prepare_server_args(["--config", str(file), "--port", "9000"])
    assert args == ServerArgs(
        model_path="/m", port=9000, tp_size=2, mem_fraction_static=0.85, enable_metrics=True, enable_mixed_chunk=False,
        enable_piecewise_cuda_graph=False, default_chat_template_kwargs={"enable_thinking": True}, dtype="float16",
    )  # fmt: skip
    file.write_text("")
    assert prepare_server_args(["--config", str(file)]) == ServerArgs()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prot: 1", "unknown flag --prot; did you mean --port?"),
        ("max_model_len: 1", "--max-model-len is vLLM's name: here it is --context-length"),
        ("quantization: fp8", "--quantization is not supported"),
        ("port: [1]", "--port: expected an integer, got [1]"),
        ("port: 'x'", "--port: expected an integer, got 'x'"),
        ("served-model-name: 4", "--served-model-name: expected text, got 4"),
        ("enable-metrics: 1", "--enable-metrics: true or false is expected, got 1"),
        ("port: 1\nport: 2", "line 2: port stands there already, in line 1"),
        ("tp: 1\ntp-size: 2", "--tp-size stands there twice"),
        ("version: true", "--version is for the command line only"),
        ("config: x", "--config is for the command line only"),
        ("1: 2", "unknown flag --1"),
        ("- port", "`flag: value` in each line is expected"),
        ("port", "`flag: value` in each line is expected"),
        ("a: [", "not valid YAML"),
        ("x: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("\xff", "not valid YAML"),
        ("#" * (1 << 20 | 1), "is no file of flags"),
        (None, "No such file or directory"),
    ],
)
def test_mistakes_in_a_file_are_named(text: str | None, says: str, tmp_path, capsys):
    file = tmp_path / "server.yaml"
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    assert says in one_line_error(["--config", str(file)], capsys)


def test_the_model_may_come_first():
    def parse(*argv: str) -> ServerArgs:
        return parse_with_server_args(list(argv), "sglang serve", "", model_first=True)[0]

    assert parse("/m", "--port", "1") == parse("--port", "1", "/m") == parse("--model-path", "/m", "--port", "1")
    for wrong in (["/m", "/n"], ["/m", "--model-path", "/n"], ["/m", "-x"]):
        with pytest.raises(SystemExit):
            parse(*wrong)


def test_aliases():
    assert prepare_server_args(["--model", "/m", "--tp", "1"]).model_path == "/m"


def test_unknown_keyword_is_named():
    with pytest.raises(TypeError, match="did you mean model_path"):
        ServerArgs.from_kwargs(modelpath="/m")


def test_args_are_frozen_and_hide_the_key():
    args = ServerArgs(api_key="hunter2")
    with pytest.raises(dataclasses.FrozenInstanceError):
        args.port = 1
    assert "hunter2" not in repr(args) and "hunter2" not in str(args.public_dict())


def test_help_is_grouped_and_lists_every_flag():
    done = subprocess.run(
        [sys.executable, "-m", "sglang.launch_server", "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    for flag in all_flags(ServerArgs):
        assert flag in done.stdout
    for group in {spec.group for spec in specs(ServerArgs).values()}:
        assert f"{group}:" in done.stdout


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_resolve_fills_every_automatic_value_and_says_why(device: str, caplog):
    with caplog.at_level(logging.INFO):
        args = resolve(ServerArgs(model_path="/m"), MODEL, device, memory_mib=140 * 1024)
    assert isinstance(args, ResolvedArgs) and args.device == device
    assert args.chunked_prefill_size == (8192 if device == "cuda" else 512)
    assert args.max_running_requests == (256 if device == "cuda" else 64)
    assert (args.context_length, args.dtype) == (4096, "bfloat16")
    assert args.attention_backend == ("triton" if device == "cuda" else "torch_native")
    assert (args.disable_cuda_graph, args.cuda_graph_max_bs) == ((False, 256) if device == "cuda" else (True, None))
    assert args.enable_piecewise_cuda_graph is (device == "cuda")
    assert args.piecewise_cuda_graph_max_tokens == (4096 if device == "cuda" else None)
    assert 0.5 <= args.mem_fraction_static < 1 and args.enable_mixed_chunk is True
    for name in ("chunked_prefill_size", "mem_fraction_static", "random_seed", "context_length"):
        assert any(r.message.startswith(f"{name} = ") and "(" in r.message for r in caplog.records)
    assert ("graph" in caplog.text) is (device == "cuda")  # a CPU's user has no use for them


def test_the_host_tier_has_a_size_where_it_is_on():
    def resolved(**typed):
        return resolve(ServerArgs(model_path="/m", **typed), MODEL, "cpu", memory_mib=1024)

    assert resolved().hicache_ratio is None
    assert resolved(enable_hierarchical_cache=True, hicache_size=0.0).hicache_ratio == 2
    assert resolved(enable_hierarchical_cache=True, hicache_ratio=3.0).hicache_ratio == 3
    assert resolved(enable_hierarchical_cache=True, hicache_size=100.0).hicache_size == 100
    for typed in ({"hicache_ratio": 3.0}, {"hicache_size": 1.0}):
        with pytest.raises(ValueError, match=f"{flag_of(*typed)} needs --enable-hierarchical-cache"):
            resolved(**typed)


@pytest.mark.parametrize(("installed", "chosen"), [(True, "xgrammar"), (False, "none")])
def test_resolve_takes_grammars_where_the_library_is(installed: bool, chosen: str, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed else None)
    assert resolve(ServerArgs(model_path="/m"), MODEL, "cpu", memory_mib=1024).grammar_backend == chosen
    typed = ServerArgs(model_path="/m", grammar_backend="none")
    assert resolve(typed, MODEL, "cpu", memory_mib=1024).grammar_backend == "none"


def test_resolve_keeps_what_was_typed():
    typed = ServerArgs(model_path="/m", context_length=100, random_seed=3, chunked_prefill_size=7, device="cpu")
    args = resolve(typed, MODEL, "cpu", memory_mib=1024)
    for name, (_, value) in {"context_length": (0, 100), "random_seed": (0, 3), "chunked_prefill_size": (0, 7)}.items():
        assert getattr(args, name) == value


def test_resolve_without_a_tokenizer():
    """Filling in tokenizer_path contradicted the very flag that says there is none."""
    args = resolve(ServerArgs(model_path="/m", skip_tokenizer_init=True), MODEL, "cpu", memory_mib=1024)
    assert args.tokenizer_path is None


def test_resolve_refuses_a_context_beyond_the_model():
    with pytest.raises(ValueError, match="at most 4096"):
        resolve(ServerArgs(model_path="/m", context_length=5000), MODEL, "cpu", memory_mib=1024)


NEXTN = {"speculative_algorithm": "NEXTN"}


@pytest.mark.parametrize(
    "typed,numbers",
    [
        ({}, (3, 1, 4)),
        ({"speculative_num_steps": 5}, (5, 1, 6)),
        ({"speculative_num_steps": 5, "speculative_eagle_topk": 3, "speculative_num_draft_tokens": 12}, (5, 3, 12)),
    ],
)
def test_resolve_fills_what_speculation_needs(typed: dict, numbers: tuple[int, int, int]):
    args = resolve(ServerArgs(**NEXTN, **typed), MODEL, "cpu", memory_mib=1024)
    settings = args.speculation
    assert (settings.num_steps, settings.topk, settings.num_draft_tokens, settings.position_offset) == (*numbers, 0)
    assert args.max_running_requests == 48 and args.disable_overlap_schedule and not args.enable_mixed_chunk
    assert args.speculative_draft_model_path.endswith("gemma-4-mini-it-assistant")
    assert resolve(ServerArgs(), MODEL, "cpu", memory_mib=1024).speculation is None


@pytest.mark.parametrize(
    "typed,message",
    [
        (NEXTN | {"model_path": "/m"}, "needs --speculative-draft-model-path, the folder of this model's drafter"),
        ({"speculative_num_steps": 5}, "--speculative-num-steps needs --speculative-algorithm NEXTN"),
        (NEXTN | {"speculative_eagle_topk": 1}, "need --speculative-num-steps"),
        (NEXTN | {"speculative_num_steps": 2, "speculative_eagle_topk": 2}, "needs --speculative-num-draft-tokens"),
        (
            NEXTN | {"speculative_num_steps": 5, "speculative_num_draft_tokens": 5},
            "a draft has --speculative-num-steps",
        ),
        (
            NEXTN | {"speculative_num_steps": 2, "speculative_eagle_topk": 2, "speculative_num_draft_tokens": 8},
            "2 steps of topk 2 give 3 to 7",
        ),
    ],
)
def test_resolve_refuses_speculation_that_cannot_be(typed: dict, message: str):
    with pytest.raises(ValueError, match=message):
        resolve(ServerArgs(**typed), MODEL, "cpu", memory_mib=1024)


def test_graphs_cover_the_largest_batch_there_can_be():
    for wanted in (None, 100):
        typed = ServerArgs(max_running_requests=48, cuda_graph_max_bs=wanted)
        assert resolve(typed, MODEL, "cuda", memory_mib=1 << 17).cuda_graph_max_bs == 48
    args = resolve(ServerArgs(disable_cuda_graph=True), MODEL, "cuda", memory_mib=1 << 17)
    assert args.cuda_graph_max_bs is None and args.enable_piecewise_cuda_graph is False


@pytest.mark.parametrize(
    ("typed", "tokens"),
    [
        ({"chunked_prefill_size": 512, "max_running_requests": 48}, 560),
        ({"chunked_prefill_size": -1, "max_prefill_tokens": 1000, "max_running_requests": 48}, 1048),
        ({"piecewise_cuda_graph_max_tokens": 6000}, 6000),
        ({"piecewise_cuda_graph_max_tokens": 6000, "chunked_prefill_size": 1024, "max_running_requests": 1}, 1025),
        ({}, 4096),
    ],
)
def test_prefill_graphs_cover_the_largest_step_there_can_be(typed: dict, tokens: int):
    args = resolve(ServerArgs(**typed), MODEL, "cuda", memory_mib=140 * 1024)
    assert args.piecewise_cuda_graph_max_tokens == tokens


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "wanted",
    [
        {"cuda_graph_max_bs": 4},
        {"enable_piecewise_cuda_graph": True},
        {"piecewise_cuda_graph_max_tokens": 64},
        {"attention_backend": "triton"},
    ],
)
def test_resolve_refuses_what_needs_a_gpu(wanted: dict, device: str):
    if device == "cuda":
        resolve(ServerArgs(**wanted), MODEL, device, memory_mib=1 << 17)
        graphs = wanted if "attention_backend" not in wanted else {"cuda_graph_max_bs": 4}
        wanted = {"attention_backend": "torch_native"} | graphs
    with pytest.raises(ValueError, match="GPU"):
        resolve(ServerArgs(**wanted), MODEL, device, memory_mib=1 << 17)


def test_deterministic_inference_says_what_it_does(caplog):
    with caplog.at_level(logging.INFO):
        args = resolve(ServerArgs(enable_deterministic_inference=True), MODEL, "cpu", memory_mib=1 << 14)
    assert args.enable_deterministic_inference and args.attention_backend == "torch_native"
    assert any("without a seed get 42" in r.message for r in caplog.records)
    typed = ServerArgs(enable_deterministic_inference=True, attention_backend="torch_native")
    with pytest.raises(ValueError, match="--attention-backend triton"):
        resolve(typed, MODEL, "cuda", memory_mib=1 << 17)


@pytest.mark.parametrize("gib,size", [(16, 2048), (24, 4096), (80, 8192), (140, 8192), (180, 16384)])
def test_chunk_size_by_gpu_memory(gib: int, size: int):
    assert default_chunked_prefill_size("cuda", gib * 1024) == size


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
