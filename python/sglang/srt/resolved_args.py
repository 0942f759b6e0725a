"""ResolvedArgs: the server's configuration with every automatic value chosen, and the one place where they are.

`resolve()` makes it of ServerArgs, what the user typed, and logs each choice with its reason. It must not load a model
or allocate device memory.
"""

import dataclasses
import importlib.util
import logging
import os
import secrets
from collections.abc import Callable
from typing import Any

from sglang.srt.arg_fields import flag_of
from sglang.srt.server_args import ServerArgs, model_folder
from sglang.srt.speculative.settings import POSITION_OFFSETS, SpeculationSettings, fill_numbers

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ResolvedArgs(ServerArgs):
    """ServerArgs after resolve(). Still None where None has a meaning of its own:

    api_key, chat_template, default_chat_template_kwargs, preferred_sampling_params (absent), tokenizer_path (skipped),
    prefill_max_requests (no limit), hicache_ratio or hicache_size (one will do), max_total_tokens on a GPU (known once
    the weights are loaded), cuda_graph_max_bs and piecewise_cuda_graph_max_tokens without such graphs.
    chunked_prefill_size stays -1 for no chunking. `device` is cpu or cuda. Without speculation all of its fields are.
    """

    @property
    def speculation(self) -> SpeculationSettings | None:
        """How drafts are made, None without them."""
        if self.speculative_algorithm is None:
            return None
        return SpeculationSettings(
            self.speculative_num_steps,
            self.speculative_eagle_topk,
            self.speculative_num_draft_tokens,
            POSITION_OFFSETS[self.speculative_position_rule],
        )

    @property
    def decode_tokens(self) -> int:
        """Tokens that a decode step computes for a request."""
        return 1 if self.speculation is None else self.speculation.num_draft_tokens

    @property
    def step_prompt_tokens(self) -> int:
        """Most prompt tokens in one step."""
        return step_prompt_tokens(self.chunked_prefill_size, self.max_prefill_tokens)


def choose_device(args: ServerArgs) -> str:
    """cpu or cuda. Raises ValueError when cuda was asked for and there is none."""
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU; use --device cpu or auto")
    if args.device != "auto":
        return args.device
    return "cuda" if torch.cuda.is_available() else "cpu"


MIB_PER_GIB = 1024
CPU_MAX_TOTAL_TOKENS = 65536  # a KV cache in host memory competes with everything else on the machine
CPU_LONG_REQUESTS = 8  # a small model's pool holds so many of the longest requests
CPU_MEM_FRACTION = 0.5
MAX_GRAPH_BATCH = 256  # upstream's on cards of this size
MAX_GRAPH_TOKENS = 4096  # a longer prefill keeps a GPU busy for longer than its launches take
DETERMINISTIC_SEED = 42  # upstream's, of requests that give none
HICACHE_RATIO = 2.0  # upstream's
MAX_QUEUED_REQUESTS = 16384  # a bound on memory held by requests nobody serves yet


def default_chunked_prefill_size(device: str, memory_mib: int) -> int:
    """Prompt tokens a step, by device memory; the GPU steps are upstream's."""
    if device == "cpu":
        return 512  # a step this long already takes a CPU a noticeable part of a second
    for limit_gib, size in ((20, 2048), (60, 4096), (160, 8192)):
        if memory_mib < limit_gib * MIB_PER_GIB:
            return size
    return 16384


def step_prompt_tokens(chunked_prefill_size: int, max_prefill_tokens: int) -> int:
    return max_prefill_tokens if chunked_prefill_size == -1 else chunked_prefill_size


def default_mem_fraction(memory_mib: int, prefill_tokens: int, max_running_requests: int) -> float:
    """Share of a GPU left for weights and KV: the rest holds the CUDA context, activations and graphs."""
    reserve_mib = 1024 + 1.5 * prefill_tokens + 2 * max_running_requests
    return round(min(0.95, max(0.1, 1 - reserve_mib / memory_mib)), 3)


def device_memory_mib(device: str) -> int:
    """All memory of the device, used or not."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_properties(0).total_memory >> 20
    return (os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) >> 20


def resolve(args: ServerArgs, model_config, device: str, memory_mib: int | None = None) -> ResolvedArgs:
    """Fill every automatic value and log each choice with its reason.

    `model_config` gives context_len, dtype, sliding_window, vocab_size and architectures; `device` is cpu or cuda
    (see choose_device); `memory_mib` is read from the device if not given. Raises ValueError for a value that this
    model or device cannot take.
    """
    memory_mib = device_memory_mib(device) if memory_mib is None else memory_mib
    values = args.to_dict()

    def choose(name: str, value, reason: str) -> None:
        values[name] = value
        logger.info("%s = %s (%s)", name, value, reason)

    def choose_limit(name: str, default: int, most: int, of_most: str, of_less: str) -> None:
        """What is given, or the default, but not above `most`."""
        limit = default if values[name] is None else values[name]
        if values[name] is None or limit > most:
            choose(name, min(limit, most), of_most if limit >= most else of_less)

    values["device"] = device
    if args.device == "auto":
        choose("device", device, "the GPU torch sees" if device == "cuda" else "torch sees no GPU")
    if args.model_path is None:
        choose("model_path", model_folder(args), "no --model-path: the model inside the package")
    if args.tokenizer_path is None and not args.skip_tokenizer_init:
        values["tokenizer_path"] = values["model_path"]
    if args.served_model_name is None:
        shipped = os.path.basename(values["model_path"]) if args.model_path is None else args.model_path
        values["served_model_name"] = shipped

    if args.context_length is None:
        choose("context_length", model_config.context_len, "the model's config")
    elif args.context_length > model_config.context_len:
        raise ValueError(
            f"--context-length {args.context_length}: the model takes at most {model_config.context_len} tokens; "
            "its config says so, and --json-model-override-args can change that"
        )
    if args.dtype == "auto":
        choose("dtype", model_config.dtype, "the checkpoint's type")
    if args.kv_cache_dtype not in ("auto", values["dtype"]):
        only = f"the KV cache has the model's type, {values['dtype']}"
        raise ValueError(f"--kv-cache-dtype {args.kv_cache_dtype}: {only}; leave it out")
    if args.grammar_backend == "auto":
        installed = importlib.util.find_spec("xgrammar") is not None
        reason = "it is installed" if installed else "xgrammar is not installed: requests with grammars are refused"
        choose("grammar_backend", "xgrammar" if installed else "none", reason)
    if args.attention_backend == "auto":
        gpu = device == "cuda"
        choose("attention_backend", "triton" if gpu else "torch_native", f"default of {device}")
    elif args.attention_backend == "triton" and device == "cpu":
        raise ValueError("--attention-backend triton needs a GPU; use torch_native or leave it out")

    if args.moe_runner_backend == "auto":
        values["moe_runner_backend"] = "triton" if values["attention_backend"] == "triton" else "auto"
    elif device == "cpu":
        raise ValueError("--moe-runner-backend triton needs a GPU; leave it out")
    if args.trust_remote_code:
        logger.warning("--trust-remote-code has no effect: code from a checkpoint is never run")

    if args.enable_deterministic_inference:
        if device == "cuda" and values["attention_backend"] != "triton":
            raise ValueError("--enable-deterministic-inference on a GPU needs --attention-backend triton")
        logger.info(
            "enable_deterministic_inference: products, experts and attention keep one order of adding for every row; "
            "requests without a seed get %d",
            DETERMINISTIC_SEED,
        )
    if args.enable_hierarchical_cache and not (args.hicache_size or args.hicache_ratio):
        choose("hicache_ratio", HICACHE_RATIO, "none given")
    for name in ("hicache_ratio", "hicache_size"):
        if getattr(args, name) is not None and not args.enable_hierarchical_cache:
            raise ValueError(f"{flag_of(name)} needs --enable-hierarchical-cache")
    _resolve_speculation(args, values, choose)
    if args.max_running_requests is None and args.speculative_algorithm is not None:
        choose("max_running_requests", 48, "default of speculation")
    elif args.max_running_requests is None:
        choose("max_running_requests", 256 if device == "cuda" else 64, f"default of {device}")
    if values["attention_backend"] != "triton":
        for flag in args.graph_flags():
            raise ValueError(f"{flag}: graphs need a GPU and --attention-backend triton; leave it out")
        if device == "cuda" and not args.disable_cuda_graph:
            choose("disable_cuda_graph", True, "torch_native plans its work on the host, step by step")
        values["disable_cuda_graph"] = True  # on a CPU no news
    elif not args.disable_cuda_graph:
        of_less = "larger ones are rare, and a graph takes memory"
        choose_limit(
            "cuda_graph_max_bs", MAX_GRAPH_BATCH, values["max_running_requests"], "no batch is larger", of_less
        )
    if args.max_queued_requests is None:
        values["max_queued_requests"] = MAX_QUEUED_REQUESTS
    if args.chunked_prefill_size is None:
        size = default_chunked_prefill_size(device, memory_mib)
        choose("chunked_prefill_size", size, f"{device} with {memory_mib / MIB_PER_GIB:.0f} GiB")
    prompt_tokens = step_prompt_tokens(values["chunked_prefill_size"], args.max_prefill_tokens)
    if args.enable_piecewise_cuda_graph is None:
        on = not values["disable_cuda_graph"]
        reason = "a busy host launches a prefill slower than the GPU computes it" if on else "no step has a graph"
        if device == "cuda":
            choose("enable_piecewise_cuda_graph", on, reason)
        values["enable_piecewise_cuda_graph"] = on
    if values["enable_piecewise_cuda_graph"]:
        most, of_less = prompt_tokens + values["max_running_requests"], "larger steps gain little"
        choose_limit("piecewise_cuda_graph_max_tokens", MAX_GRAPH_TOKENS, most, "no step is larger", of_less)
    if args.enable_mixed_chunk is None and args.speculative_algorithm is not None:
        choose("enable_mixed_chunk", False, "a step verifies drafts or computes prompts")
    elif args.enable_mixed_chunk is None:
        on = values["chunked_prefill_size"] != -1
        choose("enable_mixed_chunk", on, "a decode step reads the weights a chunk needs anyway" if on else "no chunks")
    if args.mem_fraction_static is None:
        if device == "cuda":
            fraction = default_mem_fraction(memory_mib, prompt_tokens, values["max_running_requests"])
            choose("mem_fraction_static", fraction, f"room for activations of {prompt_tokens} prompt tokens")
        else:
            choose("mem_fraction_static", CPU_MEM_FRACTION, "host memory is shared with other programs")
    if args.max_total_tokens is None and device == "cpu":
        most = min(CPU_MAX_TOTAL_TOKENS, CPU_LONG_REQUESTS * values["context_length"])
        choose("max_total_tokens", most, "limit on a CPU; less if memory says so")
    if args.random_seed is None:
        choose("random_seed", secrets.randbelow(2**30), "none given")
    return ResolvedArgs(**values)


def _resolve_speculation(args: ServerArgs, values: dict[str, Any], choose: Callable[[str, Any, str], None]) -> None:
    """Fill what speculation needs. Raises ValueError for numbers that do not fit together, and without a drafter."""
    if args.speculative_algorithm is None:
        for name in (name for name in values if name.startswith("speculative_") and values[name] is not None):
            raise ValueError(f"{flag_of(name)} needs --speculative-algorithm NEXTN")
        return
    numbers = args.speculative_num_steps, args.speculative_eagle_topk, args.speculative_num_draft_tokens
    names = "speculative_num_steps", "speculative_eagle_topk", "speculative_num_draft_tokens"
    for name, given, value in zip(names, numbers, fill_numbers(*numbers), strict=True):
        if given is None:
            choose(name, value, "none given")
    if args.speculative_position_rule is None:
        choose("speculative_position_rule", "n", "as drafters are trained")
    if args.speculative_draft_model_path is None:
        from sglang.assets import shipped_drafter_path, shipped_model_path

        if os.path.realpath(model_folder(args)) != os.path.realpath(shipped_model_path()):
            raise ValueError(
                "--speculative-algorithm needs --speculative-draft-model-path, the folder of this model's drafter"
            )
        choose("speculative_draft_model_path", str(shipped_drafter_path()), "the drafter of the model in the package")
    if not args.disable_overlap_schedule:
        choose("disable_overlap_schedule", True, "the next step depends on what is accepted")
    SpeculationSettings(*(values[name] for name in names))
