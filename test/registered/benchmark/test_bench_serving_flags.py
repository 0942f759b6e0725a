"""Flags of bench_serving: defaults, mistakes, missing packages, and what its help costs."""

import math
import re
import subprocess
import sys

import pytest

from sglang.bench_serving import main, make_parser, parse_args
from sglang.benchmark.unserved_flags import UNSERVED
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=3, suite="unit-test-cpu")

WRONG = {
    "--num-prompts 0": "--num-prompts is 0; it must be at least 1",
    "--random-range-ratio 1.5": "--random-range-ratio is 1.5; 0 to 1",
    "--random-input-len 0": "--random-input-len is 0",
    "--seed -1": "--seed is -1",
    "--request-rate 0": "--request-rate is 0.0",
    "--request-rate nan": "--request-rate is nan",
    "--max-concurrency 0": "--max-concurrency is 0",
    "--warmup-requests -1": "--warmup-requests is -1",
    "--ready-check-timeout-sec nan": "--ready-check-timeout-sec is nan",
    "--port 70000": "--port: 70000: 1 to 65535",
    "--temperature -1": "--temperature is -1.0",
    "--top-p 0": "--top-p is 0.0",
    "--base-url localhost:3": "--url: localhost:3: http://HOST:PORT is expected",
    "--base-url http://[::1": "http://HOST:PORT is expected",
    "--base-url http://a:b": "http://HOST:PORT is expected",
    "--header X": "--header X: NAME=VALUE",
    "--backend vllm --flush-cache": "--flush-cache is not possible",
    "--backend sglang-oai-chat --tokenize-prompt": "--tokenize-prompt sends token ids",
    "--backend vllm-chat --apply-chat-template --dataset-name gsm8k": "the server applies it",
    "--apply-chat-template": "would change the lengths",
    "--dataset-path x": "reads no file",
    "--goodput ttft": "NAME:MILLISECONDS is expected",
    "--goodput itl:3": "one of ttft, tpot, e2el",
    "--goodput ttft:-3": "a number above 0",
    "--goodput ttft:3 --disable-stream": "needs a stream",
    "--extra-request-body [1]": "a JSON object is expected",
    "--extra-request-body {": "not valid JSON",
    "--output-file /nowhere/f": "--output-file /nowhere/f: it can't be written",
    "--output-file /": "--output-file /: it can't be written",
    "--dataset-name generated-shared-prefix": "contradicts --gsp-num-groups 64 x --gsp-prompts-per-group 16 = 1024",
    "--sharegpt-output-len 9 --sharegpt-context-len 10": "leaves no room for a prompt",
    "--profile-num-steps 0": "--profile-num-steps is 0",
    "--backend magic": "invalid choice",
    "--dataset-name magic": "--dataset-name magic is none of sharegpt, custom",
    "--dataset-name image": "--dataset-name image is not served: only text is measured",
    "--dataset-name mmmu": "only text is measured",
    "--dataset-name mooncake": "--dataset-name mooncake is not served",
    "--dataset-name longbench_v2": "--dataset-name longbench_v2 needs the hub, and nothing is downloaded: put",
    "--dataset-name agentic-trace": "needs the hub",
    "--dataset-name speed-bench": "needs the hub",
    "--dataset-name openai": "it needs --backend sglang-oai-chat",
    "--top-logprobs-num 2": "--top-logprobs-num needs --return-logprob",
    "--return-logprob --top-logprobs-num -1": "--top-logprobs-num is -1",
    "--return-logprob --token-ids-logprob 2 --backend sglang-oai": "--token-ids-logprob is of /generate",
    "--return-logprob --logprob-start-len -2": "--logprob-start-len is -2",
    "--profile-start-step -1": "--profile-start-step is -1",
    "--prompt-suffix x": "--prompt-suffix is for sharegpt and custom",
    "--gsp-range-ratio 2": "--gsp-range-ratio is 2.0",
    "--gsp-zipf-alpha 2": "go together",
    "--gsp-group-distribution zipf": "go together",
    "--gsp-group-distribution zipf --gsp-zipf-alpha nan": "--gsp-zipf-alpha is nan",
}

# of SGLang 0.5.17
UPSTREAM = """
    backend base-url host port ready-check-timeout-sec dataset-name dataset-path dataset-offset agentic-max-turns
    speed-bench-category speed-bench-output-len model served-model-name tokenizer num-prompts sharegpt-output-len
    sharegpt-context-len random-input-len random-output-len random-range-ratio image-count image-resolution
    random-image-count image-format image-content request-rate use-trace-timestamps max-concurrency output-file
    output-details print-requests disable-tqdm disable-stream return-logprob top-logprobs-num token-ids-logprob
    logprob-start-len return-routed-experts cache-report seed disable-ignore-eos temperature top-p extra-request-body
    apply-chat-template profile plot-throughput profile-activities profile-start-step profile-steps profile-num-steps
    profile-by-stage profile-stages profile-output-dir profile-prefix lora-name lora-request-distribution
    lora-zipf-alpha prompt-suffix pd-separated profile-prefill-url profile-decode-url flush-cache warmup-requests
    tokenize-prompt gsp-num-groups gsp-prompts-per-group gsp-system-prompt-len gsp-question-len gsp-output-len
    gsp-range-ratio gsp-fast-prepare gsp-send-routing-key gsp-num-turns gsp-ordered gsp-group-distribution
    gsp-zipf-alpha mooncake-slowdown-factor mooncake-num-rounds mooncake-workload fake-prefill tag header
""".split()


def test_every_flag_of_upstream_is_taken_or_refused_with_a_reason(capsys):
    assert len(UPSTREAM) == 83
    taken = make_parser()._option_string_actions
    assert {f"--{name}" for name in UPSTREAM} <= taken.keys()
    assert UNSERVED.keys() <= {f"--{name}" for name in UPSTREAM}
    shown = make_parser().format_help()
    for flag, reason in UNSERVED.items():
        for words in ([flag], [flag, "1"]):
            with pytest.raises(SystemExit) as ended:
                parse_args(words)
            error = capsys.readouterr().err
            assert ended.value.code == 2 and f"{flag} is not supported: {reason}" in error
        assert not re.search(rf"{flag}(?![\w-])", shown)


@pytest.mark.parametrize("flags", WRONG)
def test_wrong_flags(tmp_path, capsys, flags):
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "--dataset-name",
                "random-ids",
                "--output-file",
                str(tmp_path / "out"),
                "--num-prompts",
                "3",
                *flags.split(),
            ]
        )
    assert ended.value.code == 2 and WRONG[flags] in capsys.readouterr().err


def test_defaults():
    """upstream's, which its users' scripts count on."""
    args = parse_args([])
    assert (args.backend, args.dataset_name, args.request_rate) == ("sglang", "sharegpt", math.inf)
    assert (args.random_input_len, args.random_output_len, args.random_range_ratio) == (1024, 1024, 0.0)
    assert (args.warmup_requests, args.ready_check_timeout_sec, args.temperature, args.top_p) == (1, 60, 0.0, 1.0)
    gsp = [getattr(args, f"gsp_{name}") for name in (
        "num_groups", "prompts_per_group", "system_prompt_len", "question_len", "output_len")]  # fmt: skip
    assert gsp == [64, 16, 2048, 128, 256]


def test_missing_packages(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        parse_args(["--plot-throughput"])
    assert "--plot-throughput needs matplotlib: .venv/bin/pip install -e '.[bench]'" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "sglang.benchmark.serving", raising=False)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, "sglang.benchmark.backends", raising=False)
    assert main(["--output-file", str(tmp_path / "out")]) == 1
    assert "aiohttp is not installed: .venv/bin/pip install -e '.[bench]'" in capsys.readouterr().err


def test_help_and_light_imports():
    """Help comes without the extra packages, and no part of the client imports torch."""
    shown = subprocess.run([sys.executable, "-m", "sglang.bench_serving", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and "--random-range-ratio" in shown.stdout
    code = "import sys, sglang.bench_serving; early = 'aiohttp' in sys.modules; import sglang.benchmark.serving; "
    code += "print(early, 'torch' in sys.modules, 'transformers' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False"] * 3


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
