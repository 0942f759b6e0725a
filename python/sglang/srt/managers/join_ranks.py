"""How a process becomes one of the ranks that share a model, device, group, settings all must agree on, and how it ends
with them."""

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from sglang.srt.distributed.tensor_parallel import SINGLE, TensorParallel
from sglang.srt.resolved_args import ResolvedArgs
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.child import ProcessConfig

OWN = (  # a machine may have its own
    "model_path", "tokenizer_path", "speculative_draft_model_path", "download_dir", "served_model_name", "node_rank",
    "log_level",
)  # fmt: skip


def join(args: ServerArgs, process: ProcessConfig, device: str) -> TensorParallel:
    """The ranks of `args.tp_size`, this process's device chosen. ValueError when this machine has too few GPUs, OSError
    when the ranks do not come together."""
    if args.tp_size == 1:
        return SINGLE
    import torch

    from sglang.srt.distributed.process_group import ProcessGroup

    here = args.tp_size // args.nnodes
    local_rank = process.tp_rank - args.node_rank * here
    if device == "cuda" and local_rank == 0 and here > torch.cuda.device_count():  # said once, not by every rank
        raise ValueError(
            f"--tp-size {args.tp_size} needs {here} GPUs on this machine, which has {torch.cuda.device_count()}"
        )
    address = f"tcp://{args.dist_init_addr}" if args.dist_init_addr else f"file://{process.ipc_dir}/ranks"
    group = ProcessGroup(process.tp_rank, args.tp_size, address, device)
    if device == "cuda":  # after the ranks have met: where GPUs are missing, rank 0 has ended the start by now
        torch.cuda.set_device(local_rank)
    return group


def agree(args: ResolvedArgs, tp: TensorParallel) -> ResolvedArgs:
    """`args` with rank 0's choices (the seed, sizes that follow memory), which steer scheduling."""
    if tp.size == 1:
        return args
    mine = msgspec.msgpack.encode(dataclasses.asdict(args)) if tp.rank == 0 else None
    chosen = msgspec.msgpack.decode(tp.broadcast_bytes(mine))
    return dataclasses.replace(args, **{name: value for name, value in chosen.items() if name not in OWN})


@contextmanager
def ending_with_others(tp_size: int) -> Iterator[None]:
    """Around the steps of one of `tp_size` ranks: SystemExit, after one line, where it has lost another."""
    if tp_size == 1:
        yield
        return
    from sglang.srt.distributed.process_group import RankLost

    try:
        yield
    except RankLost as e:
        print(f"error: {e}", file=sys.stderr, flush=True)
        sys.exit(1)
