"""What of a device's memory goes to weights and to KV: the same sums before anything is loaded, when a model that does
not fit is refused, and for the arena once the weights are there."""

from collections.abc import Iterable

import torch
from torch import nn

from sglang.srt.configs.kv_layers import KVLayerSpec
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.distributed.tensor_parallel import TensorParallel
from sglang.srt.mem_cache.arena import ArenaShape
from sglang.srt.mem_cache.arena_size import arena_shape
from sglang.srt.resolved_args import ResolvedArgs
from sglang.srt.utils.device_memory import free_memory


def weight_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of their parameters and buffers, on the meta device too."""
    return sum(t.numel() * t.element_size() for m in modules for t in (*m.parameters(), *m.buffers()))


def free_for_rank(args: ResolvedArgs) -> int:
    """Bytes that are free for one rank: the ranks of a machine share the host's, GPUs are their own."""
    free = free_memory(torch.device(args.device))
    return free // (args.tp_size // args.nnodes) if args.device == "cpu" else free


def kv_shape(args: ResolvedArgs, config: ModelConfig, kv_layers: list[KVLayerSpec], budget: int) -> ArenaShape:
    """arena_shape() of a server with these settings in `budget` bytes; `kv_layers` are a rank's."""
    return arena_shape(
        budget,
        kv_layers,
        config.torch_dtype.itemsize,
        config.sliding_window,
        args.max_running_requests,
        args.chunked_prefill_size,
        args.swa_full_tokens_ratio,
        args.context_length,
        args.max_total_tokens,
        args.decode_tokens,
    )


def check_fits(args: ResolvedArgs, config: ModelConfig, shells: Iterable[nn.Module], tp: TensorParallel) -> None:
    """ValueError if a rank's weights, whose empty `shells` are on the meta device, and the KV of one request are more
    than its memory has room for now."""
    weights, free = weight_bytes(shells), free_for_rank(args)
    room = int(free * args.mem_fraction_static)
    if weights >= room:
        where, here = ("host memory", args.tp_size // args.nnodes) if args.device == "cpu" else ("GPU memory", 1)
        ranks = f" of {here} ranks" if here > 1 else ""
        way_out = "raise it" if weights < free else "take a smaller model or more GPUs (--tp-size)"
        raise ValueError(
            f"the model does not fit: {here * weights / 1e9:.1f} GB of weights{ranks}, and of {here * free / 1e9:.1f} "
            f"GB free {where} --mem-fraction-static {args.mem_fraction_static:g} leaves {here * room / 1e9:.1f} GB for "
            f"weights and KV; {way_out}, or end what else uses memory"
        )
    kv_shape(args, config, [layer.on_rank(tp) for layer in config.kv_layers], room - weights)
