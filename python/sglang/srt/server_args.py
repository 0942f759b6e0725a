"""ServerArgs: every flag of the server, declared once.

It is what the user typed and never changes: command_line.py fills it, resolved_args.py chooses what was left open.
"""

import argparse
import dataclasses
import ipaddress
import json
import sys
from collections.abc import Callable
from typing import Any, Self

from sglang.srt.arg_fields import (
    OneLineParser,
    arg,
    at_least,
    between,
    convert,
    flag_of,
    kinds,
    meant,
    non_empty,
    slip_of,
    specs,
    validate,
)
from sglang.srt.command_line import parse_fields
from sglang.srt.speculative.settings import POSITION_OFFSETS
from sglang.srt.unsupported_flags import means_what_is_done, refusal

MODEL = "model and tokenizer"
HTTP = "HTTP server"
CHAT = "chat and sampling defaults"
PARSERS = ("gemma4", "none")
MEMORY = "memory and batching"
CACHE = "prefix cache"
KERNELS = "device and kernels"
LOGGING = "logging"
PARALLEL = "parallelism"
SPECULATION = "speculation"


def _only_one(what: str):
    return lambda value: None if value == 1 else f"only 1 is supported so far ({what})"


def _host_and_port(value: str) -> str | None:
    host, _, port = value.rpartition(":")
    fine = host and port.isascii() and port.isdigit() and 0 < int(port) < 65536
    return None if fine else "must be HOST:PORT with a port from 1 to 65535"


def _proxies(value: str) -> str | None:
    for part in value.split(","):
        try:
            if part.strip() != "*":
                ipaddress.ip_network(part.strip())
        except ValueError:
            return f"must hold addresses, networks or *, with commas; {part.strip()!r} is none of them"
    return None


def _sampling_values(value: dict) -> str | None:
    from sglang.srt.sampling.sampling_params import SamplingParams  # late: --help works without an installation

    try:
        SamplingParams.from_request(value)
    except ValueError as e:
        return f"does not work: {e}"
    return None


def _chunk_size(value: int) -> str | None:
    return None if value == -1 or value >= 1 else "must be at least 1, or -1 for no chunking"


@dataclasses.dataclass(frozen=True)
class ServerArgs:
    """What the user asked for. None means: not given, chosen by resolve() or absent."""

    model_path: str | None = arg(
        None,
        help="Folder of a Hugging Face checkpoint, or OWNER/MODEL of the hub, which is fetched. Without it the small "
        "model inside the package is served.",
        group=MODEL,
        aliases=("--model",),
        check=non_empty,
        metavar="PATH",
    )
    tokenizer_path: str | None = arg(
        None,
        help="Folder of the tokenizer, or a model of the hub; the model's if not given.",
        group=MODEL,
        check=non_empty,
        metavar="PATH",
    )
    revision: str | None = arg(
        None,
        help="Branch, tag or commit of a model of the hub (default: main).",
        group=MODEL,
        check=non_empty,
        metavar="NAME",
    )
    download_dir: str | None = arg(
        None,
        help="Folder for what is fetched from the hub (default: its own cache, see HF_HOME).",
        group=MODEL,
        check=non_empty,
        metavar="PATH",
    )
    skip_tokenizer_init: bool = arg(
        False, help="Load no tokenizer: requests carry input_ids and replies carry output_ids.", group=MODEL
    )
    load_format: str = arg(
        "auto",
        help="auto reads safetensors; dummy makes random weights from the config alone.",
        group=MODEL,
        choices=("auto", "safetensors", "dummy"),
        metavar="FORMAT",
    )
    context_length: int | None = arg(
        None,
        help="Longest prompt plus answer in tokens; the config's value if not given.",
        group=MODEL,
        check=at_least(1),
    )
    dtype: str = arg(
        "auto",
        help="Type of weights and activations; auto takes the checkpoint's.",
        group=MODEL,
        choices=("auto", "float32", "bfloat16", "float16"),
        same={"float": "float32", "half": "float16"},
        metavar="DTYPE",
    )
    trust_remote_code: bool = arg(
        False, help="Accepted and without effect: code from a checkpoint is never run.", group=MODEL
    )
    router_logits_dtype: str = arg(
        "model",
        help="Type of the expert router's logits; float32 keeps the product's sums instead of rounding them.",
        group=MODEL,
        choices=("model", "float32"),
        metavar="DTYPE",
    )
    json_model_override_args: dict = arg(
        {}, help="Entries that replace those of config.json, e.g. '{\"sliding_window\": 64}'.", group=MODEL
    )
    served_model_name: str | None = arg(
        None, help="Name in /v1/models and replies; the model path if not given.", group=MODEL, check=non_empty
    )

    host: str = arg("127.0.0.1", help="Address to listen on.", group=HTTP, check=non_empty, metavar="ADDR")
    port: int = arg(30000, help="Port to listen on.", group=HTTP, check=between(1, 65535))
    api_key: str | None = arg(
        None,
        help="Requests must send `Authorization: Bearer TEXT`. The environment variable SGLANG_API_KEY says the same "
        "and is not in the list of processes.",
        group=HTTP,
        check=non_empty,
        secret=True,
    )
    max_connections: int | None = arg(
        None,
        help="Most open connections; at the bound idle ones give way, then new ones wait (auto: what the system's "
        "limit of open files allows, which is raised at start).",
        group=HTTP,
        check=at_least(1),
    )
    forwarded_allow_ips: str | None = arg(
        None,
        help="Proxies whose X-Forwarded-For names the client in the log: addresses and networks with commas, * for "
        "all. Without it nobody's is believed.",
        group=HTTP,
        check=_proxies,
        metavar="LIST",
    )
    allowed_origins: str = arg(
        "*",
        help="Web pages that may ask from a browser: origins with commas between, * for all, none for no other.",
        group=HTTP,
        check=non_empty,
        metavar="ORIGINS",
    )
    stream_interval: int = arg(1, help="Tokens between two chunks of a stream.", group=HTTP, check=at_least(1))
    incremental_streaming_output: bool = arg(
        False, help="/generate streams only the new text instead of all text so far.", group=HTTP
    )
    enable_cache_report: bool = arg(
        False, help="Report cached prompt tokens in the usage of OpenAI replies.", group=HTTP
    )
    enable_metrics: bool = arg(False, help="Answer GET /metrics, for Prometheus.", group=HTTP)
    allow_auto_truncate: bool = arg(
        False, help="Cut a prompt longer than the context instead of answering 400.", group=HTTP
    )
    skip_server_warmup: bool = arg(False, help="Be ready without a first request of our own.", group=HTTP)
    watchdog_timeout: float = arg(
        300,
        help="Seconds for which a process may stand still before the server ends itself; after a fifth of them /health "
        "answers 503.",
        group=HTTP,
        check=at_least(1),
    )

    chat_template: str | None = arg(
        None,
        help="Jinja file to use in place of the tokenizer's chat template.",
        group=CHAT,
        check=non_empty,
        metavar="PATH",
    )
    default_chat_template_kwargs: dict | None = arg(
        None, help="Template variables of every chat request, e.g. '{\"enable_thinking\": true}'.", group=CHAT
    )
    parse_special_tokens_in_content: bool = arg(
        False,
        help="Special tokens written in the text of users and tools are read as such; otherwise they are letters.",
        group=CHAT,
    )
    sampling_defaults: str = arg(
        "model",
        help="Sampling values a request leaves out: generation_config.json's, or OpenAI's (temperature 1).",
        group=CHAT,
        choices=("model", "openai"),
        metavar="SOURCE",
    )
    tool_call_parser: str | None = arg(
        None,
        help="What reads tool calls out of the model's output (auto: gemma4 if the tokenizer has its marks).",
        group=CHAT,
        choices=PARSERS,
    )
    reasoning_parser: str | None = arg(
        None,
        help="What tells the model's thoughts from its answer (auto: gemma4 if the tokenizer has its marks).",
        group=CHAT,
        choices=PARSERS,
    )
    grammar_backend: str = arg(
        "auto",
        help="What makes outputs follow a JSON schema, a regular expression or a grammar; none refuses such requests "
        "(auto: xgrammar if it is installed; llguidance is an extra).",
        group=CHAT,
        choices=("auto", "xgrammar", "llguidance", "none"),
        metavar="BACKEND",
    )
    preferred_sampling_params: dict | None = arg(
        None,
        help="Sampling parameters of /generate for what a request leaves out; /model_info shows them.",
        group=CHAT,
        check=_sampling_values,
    )

    mem_fraction_static: float | None = arg(
        None,
        help="Share of device memory for weights and KV cache (auto: all but a reserve for activations).",
        group=MEMORY,
        check=between(0.01, 0.99),
    )
    max_running_requests: int | None = arg(
        None, help="Most requests in one batch (auto: 256 on a GPU, 64 on a CPU).", group=MEMORY, check=at_least(1)
    )
    max_queued_requests: int | None = arg(
        None, help="Most waiting requests; more get a 503 (auto: 16384).", group=MEMORY, check=at_least(1)
    )
    max_total_tokens: int | None = arg(
        None,
        help="Upper limit of tokens in the KV cache (auto: what memory allows; on a CPU at most 8 contexts and 65536).",
        group=MEMORY,
        check=at_least(1),
    )
    chunked_prefill_size: int | None = arg(
        None,
        help="Most prompt tokens in one step; -1 for no chunking (auto: by device memory, 512 on a CPU).",
        group=MEMORY,
        check=_chunk_size,
    )
    max_prefill_tokens: int = arg(
        16384, help="Most prompt tokens of all requests that start in one step.", group=MEMORY, check=at_least(1)
    )
    prefill_max_requests: int | None = arg(
        None, help="Most requests that start in one step (default: no limit).", group=MEMORY, check=at_least(1)
    )
    kv_cache_dtype: str = arg(
        "auto",
        help="Type of the KV cache, which is the model's: another one is refused.",
        group=MEMORY,
        choices=("auto", "float32", "bfloat16", "float16"),
        same={"bf16": "bfloat16"},
        metavar="DTYPE",
    )
    schedule_policy: str = arg(
        "fcfs",
        help="Order of waiting requests: first come, or longest cached prefix first.",
        group=MEMORY,
        choices=("fcfs", "lpm"),
        metavar="POLICY",
    )
    schedule_conservativeness: float = arg(
        1.0,
        help="Scales the KV memory set aside for running requests; raise it if requests are retracted often.",
        group=MEMORY,
        check=between(0, 100),
    )
    page_size: int = arg(1, help="KV slots in a page.", group=MEMORY, check=_only_one("larger pages are not in yet"))
    swa_full_tokens_ratio: float = arg(
        0.8,
        help="Sliding tokens in memory per full token it could hold, at most.",
        group=MEMORY,
        check=between(0.01, 1),
    )
    scheduler_recv_interval: int = arg(
        1,
        help="Look for new requests once in so many steps; an idle scheduler always does.",
        group=MEMORY,
        check=between(1, 1024),
    )
    enable_mixed_chunk: bool | None = arg(
        None,
        help="Put prompt chunks and decode tokens in the same step (the default).",
        group=MEMORY,
        off_flag="--disable-mixed-chunk",
    )
    disable_overlap_schedule: bool = arg(
        False, help="Finish a step's bookkeeping before the next step starts.", group=MEMORY
    )

    disable_radix_cache: bool = arg(False, help="Do not reuse the KV cache of shared prefixes.", group=CACHE)
    radix_eviction_policy: str = arg(
        "lru", help="Which cached prefix goes first.", group=CACHE, choices=("lru",), metavar="POLICY"
    )
    enable_hierarchical_cache: bool = arg(
        False, help="Keep prefixes in host memory too, for when the GPU's has no room for them.", group=CACHE
    )
    hicache_ratio: float | None = arg(
        None,
        help="Host memory for prefixes, in multiples of the KV cache's (auto: 2).",
        group=CACHE,
        check=between(0.01, 1000),
    )
    hicache_size: float | None = arg(
        None,
        help="Host memory for prefixes in GB, each GPU's own; overrides the ratio unless it is 0.",
        group=CACHE,
        check=between(0, 1e6),
        metavar="GB",
    )

    device: str = arg(
        "auto",
        help="auto takes the GPU if there is one.",
        group=KERNELS,
        choices=("auto", "cpu", "cuda"),
        metavar="DEVICE",
    )
    attention_backend: str = arg(
        "auto",
        help="Attention kernels; auto takes triton on a GPU and torch_native on a CPU.",
        group=KERNELS,
        choices=("auto", "triton", "torch_native"),
        metavar="NAME",
    )
    moe_runner_backend: str = arg(
        "auto",
        help="Kernels of the experts; auto takes triton on a GPU and torch's own on a CPU.",
        group=KERNELS,
        choices=("auto", "triton"),
        metavar="NAME",
    )
    disable_cuda_graph: bool = arg(
        False, help="Launch every kernel of a decode step by itself instead of replaying a graph.", group=KERNELS
    )
    cuda_graph_max_bs: int | None = arg(
        None,
        help="Largest decode batch with a CUDA graph (auto: 256, or --max-running-requests if that is less).",
        group=KERNELS,
        check=between(1, 4096),
    )
    enable_piecewise_cuda_graph: bool | None = arg(
        None,
        help="Replay prefill and mixed steps as CUDA graphs too, whole ones here, and compile what larger steps launch "
        "before the server is ready (the default with CUDA graphs; a start takes some seconds longer).",
        group=KERNELS,
        off_flag="--disable-piecewise-cuda-graph",
    )
    piecewise_cuda_graph_max_tokens: int | None = arg(
        None,
        help="Largest prefill or mixed step with a CUDA graph, in tokens (auto: 4096, or the largest step if that is "
        "less).",
        group=KERNELS,
        check=between(1, 65536),
    )
    enable_deterministic_inference: bool = arg(
        False,
        help="A request's tokens and log-probabilities are the same bits whatever it is batched with; slower.",
        group=KERNELS,
    )
    sampling_backend: str = arg(
        "pytorch", help="Sampling kernels.", group=KERNELS, choices=("pytorch",), metavar="NAME"
    )
    random_seed: int | None = arg(
        None,
        help="Seed of sampling without a request's own seed (auto: random).",
        group=KERNELS,
        check=between(0, 2**63 - 1),
    )

    log_level: str = arg(
        "info", help="Least severe messages shown.", group=LOGGING,
        choices=("debug", "info", "warning", "error", "critical"), metavar="LEVEL",
    )  # fmt: skip
    log_requests: bool = arg(False, help="Log requests, prompts included (see the level).", group=LOGGING)
    log_requests_level: int = arg(
        2,
        help="0 metadata, 1 with sampling parameters, 2 with texts cut short, 3 with full texts.",
        group=LOGGING,
        check=between(0, 3),
    )
    decode_log_interval: int = arg(
        40, help="Decode steps between two progress lines.", group=LOGGING, check=at_least(1)
    )

    tp_size: int = arg(
        1, help="GPUs that share the model.", group=PARALLEL, aliases=("--tp", "-tp", "--tensor-parallel-size"),
        check=between(1, 64),
    )  # fmt: skip
    nnodes: int = arg(1, help="Machines that share the model; each runs one server command.", group=PARALLEL,
        check=between(1, 64),
    )  # fmt: skip
    node_rank: int = arg(
        0, help="Which of them this is; 0 answers HTTP, the others only compute.", group=PARALLEL, check=at_least(0)
    )
    dist_init_addr: str | None = arg(
        None, help="Where the machines meet: an address of node 0 and a free port there.", group=PARALLEL,
        check=_host_and_port, metavar="HOST:PORT",
    )  # fmt: skip

    speculative_algorithm: str | None = arg(
        None, help="Let a small model draft tokens and verify them (MTP); both names mean the same.",
        group=SPECULATION, aliases=("--speculative-algo",), choices=("NEXTN", "EAGLE"), metavar="NAME",
    )  # fmt: skip
    speculative_draft_model_path: str | None = arg(
        None, help="Folder of the target's drafter, a Gemma4Assistant checkpoint, or its name at the hub; the model in "
        "the package has one.",
        group=SPECULATION, aliases=("--speculative-draft-model",), check=non_empty, metavar="PATH",
    )  # fmt: skip
    speculative_draft_model_revision: str | None = arg(
        None, help="Branch, tag or commit of a drafter of the hub (default: main).", group=SPECULATION,
        check=non_empty, metavar="NAME",
    )  # fmt: skip
    speculative_num_steps: int | None = arg(
        None, help="Tokens drafted in a row (auto: 3).", group=SPECULATION, check=between(1, 32)
    )
    speculative_eagle_topk: int | None = arg(
        None, help="Tokens drafted beside each other; more than 1 makes drafts trees (auto: 1).", group=SPECULATION,
        check=between(1, 16),
    )  # fmt: skip
    speculative_num_draft_tokens: int | None = arg(
        None, help="Tokens verified at a time, the newest one included (auto: steps + 1).", group=SPECULATION,
        check=between(2, 256),
    )  # fmt: skip
    speculative_position_rule: str | None = arg(
        None, help="Position of drafted tokens for the drafter, n being the number of tokens with KV (auto: n).",
        group=SPECULATION, choices=tuple(POSITION_OFFSETS), metavar="RULE",
    )  # fmt: skip

    def __post_init__(self) -> None:
        types_of = kinds(type(self))
        for name, spec in specs(type(self)).items():
            validate(name, getattr(self, name), spec, *types_of[name])
        for problem in self._contradictions():
            raise ValueError(problem)

    def graph_flags(self) -> list[str]:
        """Those given that ask for CUDA graphs."""
        names = "cuda_graph_max_bs", "enable_piecewise_cuda_graph", "piecewise_cuda_graph_max_tokens"
        return [flag_of(name) for name in names if getattr(self, name)]

    def _contradictions(self):
        if self.tp_size % self.nnodes:
            yield f"--nnodes {self.nnodes} does not divide --tp-size {self.tp_size}: every node has as many ranks"
        if self.node_rank >= self.nnodes:
            yield f"--node-rank {self.node_rank}: with --nnodes {self.nnodes} it must be from 0 to {self.nnodes - 1}"
        if self.nnodes > 1 and self.dist_init_addr is None:
            yield f"--nnodes {self.nnodes} needs --dist-init-addr HOST:PORT, the same on every node"
        if self.skip_tokenizer_init:
            for name in (
                "tokenizer_path", "chat_template", "default_chat_template_kwargs", "tool_call_parser",
                "reasoning_parser",
            ):  # fmt: skip
                if getattr(self, name) not in (None, "none"):
                    yield (
                        f"--{name.replace('_', '-')} contradicts --skip-tokenizer-init, "
                        "which loads no tokenizer; drop one of them"
                    )
        if self.disable_radix_cache and self.schedule_policy == "lpm":
            yield (
                "--schedule-policy lpm orders by cached prefix, which --disable-radix-cache removes; "
                "use --schedule-policy fcfs or keep the cache"
            )
        if self.disable_radix_cache and self.enable_hierarchical_cache:
            yield "--disable-radix-cache leaves nothing for --enable-hierarchical-cache to keep; drop one of them"
        if self.speculative_algorithm is not None and self.enable_mixed_chunk:
            yield (
                "--enable-mixed-chunk contradicts --speculative-algorithm: a step verifies drafts or computes prompts; "
                "drop one of them"
            )
        if self.disable_cuda_graph:
            for flag in self.graph_flags():
                yield f"{flag} contradicts --disable-cuda-graph; drop one of them"
        if self.enable_piecewise_cuda_graph is False and self.piecewise_cuda_graph_max_tokens is not None:
            yield "--piecewise-cuda-graph-max-tokens contradicts --disable-piecewise-cuda-graph; drop one of them"
        if self.enable_mixed_chunk and self.chunked_prefill_size == -1:
            yield (
                "--enable-mixed-chunk needs prompt chunks, which --chunked-prefill-size -1 turns off; "
                "give a chunk size or use --disable-mixed-chunk"
            )

    @classmethod
    def from_kwargs(cls, **kwargs: Any) -> Self:
        """Arguments by their Python names, as Engine(**kwargs) takes them. JSON fields may also be JSON text.

        Raises TypeError for an unknown name or a wrong type, ValueError for a wrong or unsupported value.
        """
        types_of = kinds(cls)
        kwargs = {name: value for name, value in kwargs.items() if not means_what_is_done(name, value)}
        for name, value in kwargs.items():
            if name not in types_of:
                reason = refusal(name)
                if reason:
                    raise ValueError(f"{name} {reason}")
                close = slip_of(name, types_of)
                raise TypeError(f"unknown server argument {name!r}" + (f"; did you mean {close}?" if close else ""))
            if types_of[name][0] is dict and isinstance(value, str):
                kwargs[name] = convert(name, dict, value)
        spec_of = specs(cls)
        return cls(**{name: meant(value, spec_of[name]) for name, value in kwargs.items()})

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; from_dict() gives back an equal object. Holds the API key: not for logs or replies."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        return cls.from_kwargs(**values)

    def public_dict(self) -> dict[str, Any]:
        """to_dict() as a client may see it: the API key only as present or absent."""
        return {**self.to_dict(), "api_key": None if self.api_key is None else "***"}


def model_folder(args: ServerArgs) -> str:
    """The checkpoint's folder or name: what was typed, else the model inside the package."""
    if args.model_path is not None:
        return args.model_path
    from sglang.assets import shipped_model_path

    return str(shipped_model_path())


def parse_with_server_args(
    argv: list[str],
    prog: str,
    description: str,
    add_flags: Callable[[OneLineParser], None] = lambda parser: None,
    model_first: bool = False,
) -> tuple[ServerArgs, argparse.Namespace]:
    """The server's flags, and the program's own, which `add_flags` gives to the parser. `model_first`: a word that is
    no flag is the model's path. A mistake ends the process: one line on stderr, exit code 2."""
    return parse_fields(ServerArgs, argv, prog, description, add_flags, "model_path" if model_first else None)


def prepare_server_args(argv: list[str]) -> ServerArgs:
    """Command line -> ServerArgs. A mistake ends the process: one line on stderr, exit code 2."""
    return parse_with_server_args(argv, "python -m sglang.launch_server", "Serve a model over HTTP.")[0]


if __name__ == "__main__":
    print(json.dumps(prepare_server_args(sys.argv[1:]).public_dict(), indent=2))
