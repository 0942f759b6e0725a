"""What a round of drafting and verifying costs beside a plain decode step, and the accept length from which it pays.

    python benchmark/gemma4/speculation_steps.py --batch-size 1 8 32 --input-len 1024 --output-file FILE.jsonl \\
        --model-path benchmark/gemma4/configs/26b-a4b --load-format dummy --speculative-algorithm NEXTN \\
        --speculative-draft-model-path benchmark/gemma4/configs/26b-a4b-assistant --speculative-num-steps 5

Takes the server's flags. All run on the same weights and cached prompts, as graphs where the server would use graphs: a
plain step, the drafts alone, a whole round up to the target's logits. Sampling, which both kinds of step have, is left
out. Medians over --repeats, in milliseconds. A round pays when it gives more tokens than it takes plain steps.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import run_metadata
from study_tables import rounds_table

import sglang
from sglang.benchmark.static_bench import Bench, Case
from sglang.srt.arg_fields import OneLineParser
from sglang.srt.model_executor.cuda_graph_runner import CudaGraphRunner
from sglang.srt.sampling.sampling_flags import SamplingFlags
from sglang.srt.server_args import parse_with_server_args
from sglang.srt.utils.child import setup_logging, startup_errors
from sglang.srt.utils.flag_types import at_least

WARM_UP = 3
GREEDY = SamplingFlags(0)


class StepTimer:
    """Times the parts of decode steps of one Bench, whose server flags ask for speculation."""

    def __init__(self, bench: Bench, repeats: int):
        if bench.args.speculation is None:
            raise ValueError("give --speculative-algorithm NEXTN and a drafter")
        self.bench, self.repeats = bench, repeats
        self.runner = bench.worker.runner
        self.nodes = bench.args.speculation.num_draft_tokens

    @torch.inference_mode()
    def measure(self, batch_size: int, input_len: int) -> dict[str, float]:
        """Milliseconds of a plain step, the drafts and a round, with `input_len` cached tokens of each request."""
        case = Case(batch_size, input_len, 2)
        self.bench.check(case)
        rounds = self.runner.speculation
        with self.bench.batch(case) as batch:
            for step in batch.prefill_steps():
                self.bench.worker.submit(step).result()
            step = batch.decode_step()
            before = step.seq_lens - self.nodes
            slots = [loc.reshape(batch_size, self.nodes).T for loc in (step.out_cache_loc, step.out_cache_loc_swa)]
            drafted = np.concatenate([step.rows[None], before[None], *slots])
            plain = np.stack([step.rows, before + 1, slots[0][0], slots[1][0]])
            lengths = before.tolist()
            times = {
                "plain": self._time(lambda x: self.runner.decode(x, [n + 1 for n in lengths]), plain),
                "draft": self._time(lambda x: rounds.make_draft(x[0], x[1], lengths, GREEDY), drafted),
                "round": self._time(lambda x: rounds.make_round(x, lengths, GREEDY), drafted),
            }
            batch.keep([[0]] * batch_size)
        self.bench.kv.check_idle()
        return times | {"verify": times["round"] - times["draft"], "break_even": times["round"] / times["plain"]}

    def _time(self, step: Callable[[torch.Tensor], object], inputs: np.ndarray) -> float:
        if self.bench.args.device == "cuda" and not self.bench.args.disable_cuda_graph:
            graph = CudaGraphRunner(step, inputs[:, 0].tolist(), [inputs.shape[1]], self.runner.device)

            def run() -> None:
                graph.run(inputs)
        else:

            def run() -> None:
                step(self.runner.tables.tensor(inputs))

        seconds = []
        for _ in range(WARM_UP + self.repeats):
            self.bench.synchronize()
            start = time.perf_counter()
            run()
            self.bench.synchronize()
            seconds.append(time.perf_counter() - start)
        return 1e3 * statistics.median(seconds[WARM_UP:])


def add_flags(parser: OneLineParser) -> None:
    parser.set_defaults(log_level="warning", random_seed="0")
    group = parser.add_argument_group("benchmark")
    group.add_argument("--batch-size", type=at_least(1), nargs="+", default=[1, 8, 32], metavar="N", help="requests")
    group.add_argument("--input-len", type=at_least(1), default=1024, metavar="N", help="cached tokens of each")
    group.add_argument("--repeats", type=at_least(1), default=30, metavar="N", help="timed steps of each kind")
    group.add_argument("--output-file", type=Path, metavar="PATH", help="a JSON line of each batch is added here")


def main(argv: list[str]) -> int:
    description = "Time rounds of speculation beside plain decode steps."
    typed, own = parse_with_server_args(argv, "python benchmark/gemma4/speculation_steps.py", description, add_flags)
    setup_logging(typed.log_level, "bench")
    with startup_errors():
        timer = StepTimer(Bench(dataclasses.replace(typed, disable_radix_cache=True)), own.repeats)
        rows = measure_all(timer, own)
    print("\n".join(rounds_table(rows)))
    if own.output_file:
        about = run_metadata.collect(["benchmark/gemma4/speculation_steps.py", *argv], Path(sglang.__file__).parent)
        own.output_file.parent.mkdir(parents=True, exist_ok=True)
        with own.output_file.open("a") as file:
            file.writelines(json.dumps({"study": "speculation_steps", "meta": about} | row) + "\n" for row in rows)
    return 0


def measure_all(timer: StepTimer, own: argparse.Namespace) -> list[dict]:
    sizes = {"input_len": own.input_len, "steps": timer.bench.args.speculative_num_steps, "nodes": timer.nodes}
    topk = {"topk": timer.bench.args.speculative_eagle_topk}
    return [{"batch_size": size} | sizes | topk | timer.measure(size, own.input_len) for size in own.batch_size]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
