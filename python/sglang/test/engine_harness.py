"""A Scheduler on a real model, fed and read by hand (scheduler_harness.py): no processes or sockets."""

from dataclasses import dataclass
from pathlib import Path

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.managers.tp_worker import make_worker
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.server_args import ResolvedArgs, ServerArgs, resolve
from sglang.test.scheduler_harness import Harness


@dataclass(frozen=True)
class LoadedModel:
    """A runner and what it was made from; it may serve several harnesses, one after the other."""

    runner: ModelRunner
    args: ResolvedArgs
    config: ModelConfig

    def harness(self, **changes) -> Harness:
        """A scheduler with an empty cache, set up as the arguments say; `changes` are Harness's own arguments."""
        settings = dict(
            full_size=self.runner.full_size,
            swa_size=self.runner.swa_size,
            window=self.config.sliding_window if self.runner.swa_size else None,
            rows=self.args.max_running_requests,
            max_len=min(self.args.context_length, self.runner.full_size),
            chunk=self.args.chunked_prefill_size,
            mixed=self.args.enable_mixed_chunk,
            overlap=not self.args.disable_overlap_schedule,
            cache=not self.args.disable_radix_cache,
            conservativeness=self.args.schedule_conservativeness,
            vocab_size=self.config.vocab_size,
            worker=make_worker(self.runner, self.args.device),
        )
        return Harness(**(settings | changes))


def load(path: str | Path, device: str, **settings) -> LoadedModel:
    """`settings` are server arguments by their Python names."""
    typed = ServerArgs.from_kwargs(model_path=str(path), device=device, random_seed=1, **settings)
    config = ModelConfig.load(str(path), None, None, "auto")
    args = resolve(typed, config, device)
    return LoadedModel(ModelRunner(args, config), args, config)
