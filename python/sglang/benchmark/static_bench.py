"""Bench: a model and its KV slots in this process, through whose steps static batches go without a scheduler."""

import dataclasses
import time

from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.child import ProcessConfig


@dataclasses.dataclass(frozen=True)
class Case:
    batch_size: int
    input_len: int  # tokens, exact
    output_len: int  # tokens, the one that the prefill makes included; with speculation steps that make one and more


@dataclasses.dataclass(frozen=True)
class Run:
    """Seconds of one run of a case."""

    prefill: float
    prefill_steps: int
    decodes: list[float]  # by step
    tokens: int  # that all of them made; with speculation a step makes one and more for each request


class Bench:
    """A model and its KV slots as a server would have them, one rank's of them where `process` says which. Raises
    ValueError or OSError when it can't be loaded."""

    def __init__(self, typed: ServerArgs, process: ProcessConfig | None = None):
        from sglang.srt.managers.run_scheduler import load_runner, make_kv_manager, resolve_and_join
        from sglang.srt.managers.tp_worker import InlineWorker

        if typed.tp_size > 1 and process is None:
            raise ValueError(f"--tp-size {typed.tp_size}: this runs on one device, unlike bench_one_batch")
        self.args, self.config, self.tp = resolve_and_join(typed, process or ProcessConfig({}, ""))
        runner = load_runner(self.args, self.config, self.tp)
        self.worker = InlineWorker(runner)
        self.kv, self.max_len = make_kv_manager(self.args, self.config, runner)

    def prompts(self, case: Case) -> list:
        """Random ids, the same for the same case and --random-seed."""
        import numpy as np

        rng = np.random.default_rng([self.args.random_seed, case.batch_size, case.input_len])
        return list(rng.integers(0, self.config.vocab_size, (case.batch_size, case.input_len)))

    def batch(self, case: Case):
        from sglang.benchmark.static_batch import StaticBatch

        return StaticBatch(self.kv, self.prompts(case), self.args.chunked_prefill_size)

    def check(self, case: Case) -> None:
        """Go through the case's steps without the device. Raises ValueError when the server's limits don't hold it."""
        if case.batch_size > self.args.max_running_requests:
            limit = f"--max-running-requests {self.args.max_running_requests}"
            raise ValueError(f"--batch-size {case.batch_size} is above {limit}")
        longest = case.input_len + 1 + (case.output_len - 1) * self.kv.decode_tokens
        if longest > self.max_len:
            drafts = f", {self.kv.decode_tokens} tokens a step," if self.kv.decode_tokens > 1 else ""
            raise ValueError(
                f"--input-len {case.input_len} and --output-len {case.output_len}{drafts} together are above "
                f"{self.max_len} tokens, the most that the context length and the KV pools leave for a request"
            )
        with self.batch(case) as batch:
            for _ in batch.prefill_steps():
                pass
            most = list(range(self.kv.decode_tokens))  # tokens that a step with drafts may add
            for _ in range(case.output_len - 1):
                batch.decode_step()
                batch.keep([most] * case.batch_size)
        self.kv.check_idle()

    def run(self, case: Case, worker=None) -> Run:
        """Run the case once; every slot is free again afterwards."""
        worker = worker or self.worker
        with self.batch(case) as batch:
            self.synchronize()
            start = time.perf_counter()
            pending = [worker.submit(step) for step in batch.prefill_steps()]
            pending[-1].result()
            prefill = time.perf_counter() - start
            decodes, tokens = [], 0
            for _ in range(case.output_len - 1):
                start = time.perf_counter()
                output = worker.submit(batch.decode_step()).result()
                batch.keep(output.kept)
                tokens += sum(map(len, output.next_ids))
                decodes.append(time.perf_counter() - start)
        self.kv.check_idle()
        return Run(prefill, len(pending), decodes, tokens)

    def synchronize(self) -> None:
        if self.args.device == "cuda":
            import torch

            torch.cuda.synchronize()

    def device_name(self) -> str:
        if self.args.device == "cpu":
            return "cpu"
        import torch

        return torch.cuda.get_device_name()
