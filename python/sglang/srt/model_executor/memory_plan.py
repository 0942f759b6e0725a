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
from sglang.srt.utils import host
from sglang.srt.utils.device_memory import free_memory

HOST_SHARE = 0.9  # of the free host memory that prefixes may take; it is locked, so nothing else can have it back


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


def host_shape(args: ResolvedArgs, card: ArenaShape, page_bytes: int, window: int | None) -> ArenaShape:
    """The host tier's arena of one rank: pages as the card's, which has `card`. Raises ValueError where the host has
    not so much memory free, or the size asked for holds no window and token."""
    if args.hicache_size:
        wanted, flag = int(args.hicache_size * 1e9), f"--hicache-size {args.hicache_size:g}"
    else:
        wanted = int(args.hicache_ratio * card.num_pages * page_bytes)
        flag = f"--hicache-ratio {args.hicache_ratio:g}"
    free = host.free_memory() // (args.tp_size // args.nnodes)
    if wanted > free * HOST_SHARE:
        raise ValueError(
            f"{flag} takes {wanted / 1e9:.1f} GB of host memory, of which {free / 1e9:.1f} GB are free for this rank: "
            f"--hicache-size {int(free * HOST_SHARE / 1e9)} is the most"
        )
    pages = wanted // page_bytes - 1  # less the padding page
    least = 1 + (-(-window // card.swa_per_page) if card.swa_per_page else 0)
    if pages < least:
        raise ValueError(f"{flag}: {wanted / 1e6:.1f} MB hold no prefix; {(least + 1) * page_bytes / 1e6:.1f} MB would")
    return card.with_pages(pages)


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
