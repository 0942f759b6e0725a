"""Models by their names at the hub, from a stand-in on the loopback: what is fetched, the cache, and what is said of
names, revisions, keys and networks that do not do."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sglang.assets import shipped_drafter_path, shipped_model_path
from sglang.srt.model_loader.hub import with_folders
from sglang.srt.server_args import ServerArgs
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.hub_server import HubServer, Repo
from sglang.test.server_process import ServerProcess, free_port
from sglang.test.sse_server import SseServer

register_cpu_ci(est_time=25, suite="base-b-test-cpu")

MODEL = shipped_model_path()
CONFIG = (MODEL / "config.json").read_bytes()
INDEX = "model.safetensors.index.json"


def of_folder(folder: Path) -> dict[str, Path | bytes]:
    return {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}


def shards(*names: str) -> bytes:
    return json.dumps({"weight_map": {f"w{i}": name for i, name in enumerate(names)}}).encode()


REPOS = {
    "acme/mini": Repo(of_folder(MODEL) | {
        "modeling_gemma.py": b"raise SystemExit(7)", "original/model.safetensors": b"x",
        "consolidated.safetensors": b"x", "pytorch_model.bin": b"x",
    }),
    "acme/mini-assistant": Repo(of_folder(shipped_drafter_path())),
    "acme/shards": Repo({
        "config.json": CONFIG, INDEX: shards("a-1.safetensors", "a-2.safetensors"), "a-1.safetensors": b"1",
        "a-2.safetensors": b"2", "a-3.safetensors": b"3",
    }),
    "acme/short": Repo(
        {"config.json": CONFIG, INDEX: shards("a.safetensors", "gone.safetensors"), "a.safetensors": b"x"}
    ),
    "acme/outside": Repo({"config.json": CONFIG, INDEX: shards("../../x.safetensors"), "../../x.safetensors": b"x"}),
    "acme/climbs": Repo({"config.json": CONFIG, "additional_chat_templates/../../../../x.jinja": b"x"}),
    "acme/huge": Repo({
        "config.json": CONFIG, "a.safetensors": b"x",
        INDEX: json.dumps({"metadata": {"total_size": 10**18}, "weight_map": {"w": "a.safetensors"}}).encode(),
    }),
    "acme/slow": Repo({"config.json": CONFIG, "model.safetensors": b"x"}, stalls="model.safetensors"),
    "acme/bin": Repo({"config.json": CONFIG, "pytorch_model.bin": b"x"}),
    "acme/empty": Repo({"README.md": b"x"}),
    "acme/gpt": Repo({"config.json": b'{"architectures": ["GPT2LMHeadModel"]}', "model.safetensors": b"x"}),
    "acme/fp8": Repo({
        "config.json": json.dumps(json.loads(CONFIG) | {"quantization_config": {"quant_method": "fp8"}}).encode(),
        "model.safetensors": b"x",
    }),
    "acme/terms": Repo({"config.json": CONFIG}, needs_token="hf_right"),
    "acme/sick": Repo({}, refused=(400, "")),
    "acme/denied": Repo({}, refused=(401, "")),
}  # fmt: skip


@pytest.fixture(scope="module")
def hub():
    with HubServer(REPOS) as server:
        yield server


CODE = """
import json, sys
from sglang.srt.model_loader.hub import with_folders
from sglang.srt.server_args import ServerArgs
for fields in json.loads(sys.argv[1]):
    told = []
    try:
        args = with_folders(ServerArgs.from_kwargs(**fields), told.append)
        print(json.dumps([args.to_dict(), told]))
    except ValueError as e:
        print(json.dumps([str(e), told]))
"""


def ask(endpoint: str, *fields: dict, **env: str) -> list[tuple[dict | str, list[str]]]:
    """What with_folders() makes of each of the arguments in one process whose hub is at `endpoint`: what it returns, or
    its sentence; and what it told. huggingface_hub reads its environment when it is imported."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    env = clean | {"HF_ENDPOINT": endpoint, "HF_TOKEN_PATH": "/none"} | env
    words = [sys.executable, "-c", CODE, json.dumps(fields)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_model_is_fetched_once_and_only_what_is_read(hub, tmp_path):
    fields = {"model_path": "acme/mini", "download_dir": str(tmp_path)}
    hub.requests.clear()
    ((args, told),) = ask(hub.url, fields)
    folder = Path(args["model_path"])
    assert folder.is_relative_to(tmp_path) and folder.name == "a" * 40
    assert args["served_model_name"] == "acme/mini"
    assert told == [f"acme/mini is not a folder: taken from {hub.url}, or from {tmp_path} if it is there already"]
    read = ["chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
            "tokenizer_config.json"]  # fmt: skip
    assert hub.fetched() == read == sorted(p.name for p in folder.iterdir())
    assert all((folder / name).read_bytes() == (MODEL / name).read_bytes() for name in read)

    hub.requests.clear()
    again, named = ask(hub.url, fields, fields | {"served_model_name": "mini", "revision": "main"})
    assert again[0] == args and hub.fetched() == [] and named[0]["served_model_name"] == "mini"
    hub.requests.clear()
    offline = ask(hub.url, fields, HF_HUB_OFFLINE="1")
    assert offline[0][0] == args and hub.requests == []
    ((down, _),) = ask(f"http://127.0.0.1:{free_port()}", fields)
    assert down == args


def test_a_drafter_and_a_tokenizer_by_their_names(hub, tmp_path):
    draft = {"speculative_algorithm": "NEXTN", "speculative_draft_model_path": "acme/mini-assistant"}
    ((args, _),) = ask(hub.url, {"tokenizer_path": "acme/mini", "download_dir": str(tmp_path), **draft})
    assert args["model_path"] is None
    assert sorted(os.listdir(args["tokenizer_path"])) == [
        "chat_template.jinja", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert {"config.json", "model.safetensors"} <= set(os.listdir(args["speculative_draft_model_path"]))


def test_shards_are_those_of_the_index_and_dummy_weights_need_none(hub, tmp_path):
    hub.requests.clear()
    fields = {"model_path": "acme/shards", "download_dir": str(tmp_path), "load_format": "dummy"}
    ask(hub.url, fields)
    assert hub.fetched() == ["config.json", INDEX]
    hub.requests.clear()
    ((args, _),) = ask(hub.url, fields | {"load_format": "auto"})
    assert hub.fetched() == ["a-1.safetensors", "a-2.safetensors"]
    assert not (Path(args["model_path"]) / "a-3.safetensors").exists()


def test_what_can_not_be_had_is_one_sentence(hub, tmp_path):
    def sentence(name: str, reason: str, flag: str = "--model-path") -> str:
        return f"{flag} {name} is not a folder, and as a model of the hub it can't be had: {reason}"

    gone = f"there is no {hub.url}/acme/nothing, or it is private and HF_TOKEN holds no key for it"
    terms = f"{hub.url}/acme/terms is given out on terms; accept them there, and put the key of that account into "
    nothing = "it has none of the files that are read, like config.json"
    version = f"{hub.url}/acme/mini has no revision v9"
    cases = [
        ({"model_path": "acme/nothing"}, sentence("acme/nothing", gone)),
        ({"model_path": "acme/mini", "revision": "v9"}, sentence("acme/mini", version)),
        ({"model_path": "acme/terms"}, sentence("acme/terms", terms)),
        ({"model_path": "acme/sick"}, sentence("acme/sick", f"{hub.url} can't be reached")),
        ({"model_path": "acme/denied"}, sentence("acme/denied", f"{hub.url} refuses the key in HF_TOKEN")),
        ({"model_path": "a..b/c--d"}, sentence("a..b/c--d", "that can be no model's name")),
        ({"model_path": "acme/empty"}, sentence("acme/empty", nothing)),
        ({"model_path": "acme/gpt"}, "architecture GPT2LMHeadModel is not supported"),
        ({"model_path": "acme/fp8"}, "the weights are quantized (fp8)"),
        ({"model_path": "acme/mini-assistant"}, "is a drafter and can't be served alone"),
        ({"model_path": "acme/short"}, "gone.safetensors does not exist"),
        ({"model_path": "acme/huge"}, "--model-path acme/huge: 1000000000.0 GB are to be fetched, and the disk of "),
        ({"model_path": "acme/bin"}, "only safetensors are read"),
        ({"model_path": "acme/outside"}, "names '../../x.safetensors' as a shard"),
        ({"model_path": "acme/climbs"}, "x.jinja"),
        ({"tokenizer_path": "acme/nothing"}, sentence("acme/nothing", gone, "--tokenizer-path")),
        ({"speculative_draft_model_path": "acme/mini"}, "is not supported as a drafter"),
    ]  # fmt: skip
    hub.requests.clear()
    answers = ask(hub.url, *({"download_dir": str(tmp_path / "cache"), **fields} for fields, _ in cases))
    for (fields, wanted), (got, _) in zip(cases, answers, strict=True):
        assert isinstance(got, str) and wanted in got and "\n" not in got, (fields, got)
    fetched = hub.fetched()
    assert "model.safetensors" not in fetched and "x.safetensors" not in fetched  # refused before the weights come
    assert not list(tmp_path.rglob("x.jinja")) and not list(tmp_path.parent.glob("x.*"))


def test_networks_and_keys(hub, tmp_path):
    fields = {"model_path": "acme/terms", "download_dir": str(tmp_path), "load_format": "dummy"}
    ((wrong, _),) = ask(hub.url, fields, HF_TOKEN="hf_wrong")
    assert "is given out on terms" in wrong and "hf_wrong" not in wrong
    ((down, _),) = ask(f"http://127.0.0.1:{free_port()}", fields)
    assert "can't be reached, and" in down and "does not hold all of it" in down
    ((offline, _),) = ask(hub.url, fields, HF_HUB_OFFLINE="1")
    assert f"HF_HUB_OFFLINE is set, and {tmp_path} does not hold all of it" in offline
    ((right, _),) = ask(hub.url, fields, HF_TOKEN="hf_right")
    assert Path(right["model_path"]).is_dir()
    # the weights of what is cached are not: nothing half is served
    ((half, _),) = ask(hub.url, fields | {"load_format": "auto"}, HF_HUB_OFFLINE="1", HF_TOKEN="hf_right")
    assert isinstance(half, str)


def test_what_is_no_name_of_the_hub_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme" / "here").mkdir(parents=True)
    told: list[str] = []
    for path in (str(tmp_path), "acme/here", "gone", "./acme/gone", "/acme/gone", "a/b/c", "../b"):
        args = ServerArgs(model_path=path)
        assert with_folders(args, told.append) == args and not told
    with_folders(ServerArgs(model_path="acme/here", revision="v1"), told.append)
    assert told == ["--revision v1 has no effect: acme/here is not fetched from the hub"]


def test_a_benchmark_fetches_its_tokenizer(hub, tmp_path):
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN_PATH": "/none", "HF_HUB_CACHE": str(tmp_path / "cache")}
    with SseServer() as server:
        words = ["--base-url", server.url, "--dataset-name", "random-ids", "--num-prompts", "2", "--tokenizer",
                 "acme/mini", "--random-input-len", "4", "--output-file", str(tmp_path / "out.jsonl")]  # fmt: skip
        done = subprocess.run([sys.executable, "-m", "sglang.bench_serving", *words], env=env, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out.jsonl").read_text())["total_output_tokens_retokenized"] > 0
    assert list((tmp_path / "cache").rglob("tokenizer.json")) and not list((tmp_path / "cache").rglob("*.safetensors"))


def test_ctrl_c_ends_a_fetch_at_once(hub, tmp_path):
    """Python would wait for the thread that fetches 5 GB."""
    words = [sys.executable, "-m", "sglang", "serve", "acme/slow", "--download-dir", str(tmp_path)]
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN_PATH": "/none"}
    default_signals = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    process = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **default_signals)
    assert hub.stalled.wait(60)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == -signal.SIGINT
    assert b"Traceback" not in process.stderr.read()


def test_a_server_starts_by_the_name(hub, tmp_path, monkeypatch):
    for name, value in {"HF_ENDPOINT": hub.url, "HF_TOKEN_PATH": "/none"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    flags = ("--model-path", "acme/mini", "--download-dir", str(tmp_path))
    with ServerProcess("sglang.launch_server", *flags) as server:
        (card,) = server.client.get("/v1/models").json()["data"]
        assert card["id"] == "acme/mini"
        info = server.client.get("/model_info").json()
        assert Path(info["model_path"]).is_relative_to(tmp_path) and info["served_model_name"] == "acme/mini"
        body = {"input_ids": [2, 5, 7], "sampling_params": {"max_new_tokens": 4, "temperature": 0}}
        assert len(server.client.post("/generate", json=body).json()["output_ids"]) == 4


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
