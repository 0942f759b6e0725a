"""A Scheduler on a real ModelRunner, in this process: the engine without sockets."""

import random
from dataclasses import dataclass
from pathlib import Path

import torch

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.managers.run_scheduler import make_host_tier
from sglang.srt.managers.tp_worker import InlineWorker, make_worker
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.resolved_args import ResolvedArgs, resolve
from sglang.srt.server_args import ServerArgs
from sglang.test.scheduler_harness import Harness
from sglang.test.tiny_models import VOCAB

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class LoadedModel:
    """A runner and what it was made from; it may serve several harnesses, one after the other."""

    runner: ModelRunner
    args: ResolvedArgs
    config: ModelConfig

    def harness(self, full_size: int | None = None, **changes) -> Harness:
        """A scheduler with an empty cache, set up as the arguments say, but for at most `full_size` tokens; `changes`
        are Harness's own arguments."""
        args, runner = self.args, self.runner
        shape = runner.kv_shape if full_size is None else runner.kv_shape._replace(full_size=full_size)
        settings = dict(
            shape=shape,
            window=self.config.sliding_window if runner.kv_shape.swa_size else None,
            rows=args.max_running_requests,
            max_len=min(args.context_length, runner.kv_shape.full_size - args.decode_tokens + 1),
            chunk=args.chunked_prefill_size,
            mixed=args.enable_mixed_chunk,
            overlap=not args.disable_overlap_schedule,
            cache=not args.disable_radix_cache,
            conservativeness=args.schedule_conservativeness,
            vocab_size=self.config.vocab_size,
            decode_tokens=args.decode_tokens,
            worker=make_worker(lambda: runner, args.device),
            tier=make_host_tier(self.config, runner),
        )
        return Harness(**(settings | changes))


def load(path: str | Path, **settings) -> LoadedModel:
    """`settings` are server arguments by their Python names; on a GPU where there is one unless they say otherwise."""
    typed = ServerArgs.from_kwargs(**{"model_path": str(path), "device": DEVICE, "random_seed": 1} | settings)
    config = ModelConfig.load(str(path), None, None, "auto")
    args = resolve(typed, config, typed.device)
    return LoadedModel(ModelRunner(args, config), args, config)


def engine(path: str | Path, **settings) -> Harness:
    """A harness whose worker is a real model; log-probabilities and tokens come back in its `received`."""
    if DEVICE == "cuda":  # many engines share the card, and each graph takes a moment
        settings = {"max_total_tokens": 5000, "cuda_graph_max_bs": 4, "piecewise_cuda_graph_max_tokens": 64} | settings
    return load(path, **settings).harness()


def prompts() -> list[list[int]]:
    """Lengths on both sides of window and chunk sizes; some share a prefix, two are equal."""
    rng = random.Random(3)
    shared = rng.choices(range(3, VOCAB), k=37)
    some = [rng.choices(range(3, VOCAB), k=n) for n in (1, 5, 16, 17, 60)]
    return some + [shared, shared + [7, 8], shared[:20] + some[1], shared]


class StrictWorker(InlineWorker):
    """Any wait for the device during a launch is an error."""

    def submit(self, step):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return super().submit(step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
