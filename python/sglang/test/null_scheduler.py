"""The real scheduler process on a model that costs nothing, for benchmarks of everything around the model.

`python -m sglang.test.null_scheduler [server flags]` starts a whole server on it.
"""

import sys
from types import SimpleNamespace

import torch

from sglang.srt.mem_cache.arena import ArenaShape
from sglang.srt.model_executor.launched_step import LaunchedStep
from sglang.srt.model_executor.step_io import StepInput

TOKEN = 200  # an ordinary token of the shipped tokenizer


class NullRunner:
    """ModelRunner's face: endless slots, and TOKEN for every request."""

    weight_bytes = 0
    kv_pool = SimpleNamespace(nbytes=0)
    host_kv = cpu_threads = None

    def __init__(self, args, model_config):
        size = args.max_running_requests * args.context_length
        self.kv_shape = ArenaShape.apart(size, size if model_config.sliding_window else 0)

    def launch(self, step: StepInput) -> LaunchedStep:
        return LaunchedStep(torch.full((len(step.sampled),), TOKEN))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        from sglang.srt.entrypoints.http_server import serve
        from sglang.srt.server_args import prepare_server_args
        from sglang.srt.utils.child import run_and_leave

        run_and_leave(lambda: serve(prepare_server_args(sys.argv[1:]), "sglang.test.null_scheduler"))
    from sglang.srt.managers.run_scheduler import main

    main(NullRunner)
