"""The scheduler process: `python -m sglang.srt.managers.run_scheduler`, started by the server with its settings."""

import logging
import os
from collections.abc import Callable
from functools import partial

from sglang.srt.utils.child import (
    ProcessConfig,
    exit_when_parent_dies,
    freeze_startup_objects,
    read_process_config,
    run_and_leave,
    setup_logging,
    startup_errors,
)
from sglang.srt.utils.heartbeat import IDLE_SECONDS, Heartbeat

logger = logging.getLogger(__name__)


def main(make_runner: Callable | None = None) -> None:
    """`make_runner(args, model_config)` replaces ModelRunner in benchmarks."""
    config = read_process_config()
    exit_when_parent_dies(config.ipc_dir)

    from sglang.srt.server_args import ServerArgs

    with startup_errors():
        args = ServerArgs.from_dict(config.server_args)
        rank = config.tp_rank
        quiet = rank > 0 and args.log_level == "info"  # all ranks take the same steps; one log of them is enough
        setup_logging("warning" if quiet else args.log_level, f"scheduler rank {rank}" if rank else "scheduler")
        scheduler, ready = build(args, config, make_runner)
    heart = Heartbeat(config.ipc_dir, config.name)
    freeze_startup_objects()
    scheduler.send(ready)
    from sglang.srt.managers.join_ranks import ending_with_others

    with ending_with_others(args.tp_size):
        while True:
            heart.beat()
            scheduler.step()


def resolve_for_model(typed):
    """(ResolvedArgs, ModelConfig). Raises ValueError for what the model or this machine can't take."""
    from sglang.srt.configs.generation_config import check_defaults
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.resolved_args import choose_device, resolve
    from sglang.srt.server_args import model_folder

    model_config = ModelConfig.load(
        model_folder(typed),
        typed.json_model_override_args,
        typed.context_length,
        typed.dtype,
        typed.router_logits_dtype,
    )
    if typed.sampling_defaults == "model":
        check_defaults(model_config.generation_config)
    args = resolve(typed, model_config, choose_device(typed))
    check_model(args, model_config)
    return args, model_config


def check_model(args, model_config) -> None:
    """ValueError if the model cannot be split among the ranks, the drafter is another model's, or memory does not hold
    them: empty shells show it before anything large is loaded."""
    import torch

    from sglang.srt.configs.model_config import DrafterConfig
    from sglang.srt.distributed.tensor_parallel import TensorParallel
    from sglang.srt.model_executor.memory_plan import check_fits
    from sglang.srt.model_loader.loader import build_drafter, build_model

    meta, tp = torch.device("meta"), TensorParallel(0, args.tp_size)
    shells = [build_model(model_config, meta, tp)]
    if args.speculation:
        drafter = DrafterConfig.load(args.speculative_draft_model_path)
        shells.append(build_drafter(drafter, model_config, meta, tp))
    check_fits(args, model_config, shells, tp)


def load_runner(args, model_config, tp):
    """A ModelRunner that is ready to serve, on the thread that will use it."""
    from sglang.srt.model_executor import cpu_threads
    from sglang.srt.model_executor.model_runner import ModelRunner

    if args.device == "cuda":
        return ModelRunner(args, model_config, tp)
    most = cpu_threads.limit(args.tp_size // args.nnodes)
    runner = ModelRunner(args, model_config, tp)
    cpu_threads.choose(runner, most)
    return runner


def make_kv_manager(args, model_config, runner):
    """(KVManager over the runner's memory, tokens of prompt and output together that a request may have)."""
    from sglang.srt.managers.kv_manager import KVManager

    decode_tokens, shape = args.decode_tokens, runner.kv_shape
    max_len = min(args.context_length, shape.full_size - decode_tokens + 1)
    if args.chunked_prefill_size < 0 and shape.swa_size:  # the whole prompt has sliding slots while it is computed
        max_len = min(max_len, shape.swa_size - decode_tokens + 1)
    kv = KVManager(
        shape,
        model_config.sliding_window if shape.swa_size else None,
        args.max_running_requests,
        max_len,
        enable_cache=not args.disable_radix_cache,
        decode_tokens=decode_tokens,
        tier=make_host_tier(model_config, runner),
    )
    return kv, max_len


def make_host_tier(model_config, runner):
    """A HostTier over the runner's memory for it; None where it has none."""
    if runner.host_kv is None:
        return None
    from sglang.srt.mem_cache.arena_size import token_bytes
    from sglang.srt.mem_cache.host_tier import HostTier

    shape = runner.kv_shape
    window = model_config.sliding_window if shape.swa_size else None
    return HostTier(
        runner.host_kv.shape, shape, window, token_bytes(runner.kv_layers, model_config.torch_dtype.itemsize)
    )


def connect(process: ProcessConfig, tp) -> tuple[Callable, Callable]:
    """(receive, send) of a scheduler: rank 0 has the sockets, the others hear from it and say nothing."""
    if tp.rank > 0:
        from sglang.srt.managers.request_stream import following

        return following(tp), lambda message: None
    from sglang.srt.managers.io_struct import ToScheduler
    from sglang.srt.utils.ipc import Receiver, Sender

    receiver = Receiver(os.path.join(process.ipc_dir, "scheduler"), ToScheduler)

    def receive(block: bool | float) -> list:
        return receiver.receive_all(min(block, IDLE_SECONDS) if block else False)

    send = Sender(os.path.join(process.ipc_dir, "detokenizer")).send
    if tp.size > 1:
        from sglang.srt.managers.request_stream import leading

        receive = leading(receive, tp)
    return receive, send


def make_grammar_manager(args, model_config, process: ProcessConfig, tp):
    """None where no request may have a grammar. Raises ValueError if the library is missing."""
    if args.grammar_backend == "none" or args.skip_tokenizer_init:
        return None
    from sglang.srt.managers.grammar_manager import GrammarManager
    from sglang.srt.utils.ipc import Sender

    if args.grammar_backend == "xgrammar":
        from sglang.srt.constrained.xgrammar_backend import XGrammarBackend as Backend
    else:
        from sglang.srt.constrained.llguidance_backend import LLGuidanceBackend as Backend
    backend = Backend(args.tokenizer_path, model_config.vocab_size, model_config.eos_token_ids)
    announce = Sender(os.path.join(process.ipc_dir, "scheduler")).send if tp.rank == 0 else None
    return GrammarManager(backend, announce, shared=tp.size > 1)


def resolve_and_join(typed, process: ProcessConfig):
    """(ResolvedArgs, ModelConfig, TensorParallel) of the rank that this process is. Raises what
    resolve_for_model and join do."""
    from sglang.srt.utils import host

    host.bound_spinning()  # before torch is loaded
    from sglang.srt.managers import join_ranks
    from sglang.srt.resolved_args import choose_device

    if process.tp_rank % (typed.tp_size // typed.nnodes) == 0:
        # What is wrong for all ranks is said once on each node: the node's other ranks wait in join() meanwhile.
        args, model_config = resolve_for_model(typed)
        tp = join_ranks.join(typed, process, args.device)
    else:
        tp = join_ranks.join(typed, process, choose_device(typed))
        args, model_config = resolve_for_model(typed)
    return join_ranks.agree(args, tp), model_config, tp


def build(typed, process: ProcessConfig, make_runner: Callable | None = None):
    """The scheduler with everything it drives, and the message that says it is ready."""
    from sglang.srt.configs.generation_config import without_effect
    from sglang.srt.managers.io_struct import SchedulerReady
    from sglang.srt.managers.request_stream import once_in
    from sglang.srt.managers.schedule_policy import SchedulePolicy
    from sglang.srt.managers.scheduler import Scheduler, SchedulerLimits
    from sglang.srt.managers.scheduler_stats import SchedulerStats
    from sglang.srt.managers.tp_worker import make_worker

    args, model_config, tp = resolve_and_join(typed, process)
    if tp.rank == 0 and (unread := without_effect(model_config.generation_config)):
        logger.warning(
            "generation_config.json: without effect on this server: %s",
            ", ".join(f"{name} {value!r}"[:80] for name, value in unread.items()),
        )
    receive, send = connect(process, tp)
    receive = once_in(args.scheduler_recv_interval, receive)
    make = partial(make_runner, args, model_config) if make_runner else partial(load_runner, args, model_config, tp)
    worker = make_worker(make, args.device)
    runner = worker.runner
    kv, max_len = make_kv_manager(args, model_config, runner)
    policy = SchedulePolicy(
        args.schedule_policy,
        args.chunked_prefill_size,
        args.max_prefill_tokens,
        args.prefill_max_requests,
        args.enable_mixed_chunk,
        args.schedule_conservativeness,
    )
    limits = SchedulerLimits(
        max_len=max_len,
        vocab_size=model_config.vocab_size,
        eos_token_ids=frozenset(model_config.eos_token_ids),
        max_queued=args.max_queued_requests,
        seed=args.random_seed,
        overlap=not args.disable_overlap_schedule,
    )
    stats = SchedulerStats(args.decode_log_interval, args.speculative_num_steps)
    grammars = make_grammar_manager(args, model_config, process, tp)
    scheduler = Scheduler(worker, kv, policy, limits, receive, send, stats, grammars)
    public = args.public_dict() | {
        "max_total_num_tokens": runner.kv_shape.full_size,
        "max_total_num_tokens_swa": runner.kv_shape.swa_size,
        "max_req_input_len": max_len - 1,
        "max_req_len": max_len,
        "cpu_threads": runner.cpu_threads,
        "vocab_size": model_config.vocab_size,
        "eos_token_ids": model_config.eos_token_ids,
        "generation_config": model_config.generation_config,
        "architectures": model_config.architectures,
        "model_type": model_config.model_type,
        "memory_usage": {
            "weight": round(runner.weight_bytes / 1e9, 3),
            "kvcache": round(runner.kv_pool.nbytes / 1e9, 3),
            "token_capacity": runner.kv_shape.full_size,
        },
    }
    return scheduler, SchedulerReady(public)


if __name__ == "__main__":
    run_and_leave(main)
