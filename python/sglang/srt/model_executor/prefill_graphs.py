"""PrefillGraphs: prefill and mixed steps captured for several numbers of tokens, so that a step costs one launch.

What a step consists of is data: its tokens, their requests, the tiles of attention. It runs in the smallest graph that
holds it; what is left over is padding (step_layout.py). A decode row is a prompt of one token here, so its keys are
not shared among programs: steps with long ones are not taken.

Steps larger than the graphs are launched kernel by kernel. Those kernels differ by the number of tokens, and Triton
compiles one when it is first launched, for up to a second; warm_up_sizes() are the steps that leave none for later.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sglang.srt.layers.attention.forward_batch import ForwardBatch
from sglang.srt.model_executor.cuda_graph_runner import capture, captures
from sglang.srt.model_executor.step_io import StepInput
from sglang.srt.model_executor.step_layout import PADDING_REQUESTS, filled, layout, padding_step
from sglang.srt.ops.attention.extend_attention import make_work
from sglang.srt.ops.moe.config import TUNED_TOKENS
from sglang.srt.utils.device_copies import fill

MAX_REQUESTS = 128  # room for more costs every step
MAX_DECODE_KEYS = 8192

# layout()'s numbers and attention's tiles of each size, on the device, and how many requests they are -> the batch, and
# its hidden states [T, H]
Run = Callable[[Tensor, list[Tensor], int], tuple[ForwardBatch, Tensor]]


def prefill_sizes(most: int, longest: int) -> list[int]:
    """Numbers of tokens up to `most`, itself included: 16 to 64 apart up to 1024, a sixteenth from there on. What may
    be left over fits into a prompt of `longest`."""
    sizes, size = [], 0
    while size < most:
        gap = max(16, min(64, 1 << size.bit_length() >> 3)) if size < 1024 else size // 16 // 64 * 64
        size = min(most, size + min(longest, gap))
        sizes.append(size)
    return sizes


def warm_up_sizes(largest_graph: int, most: int) -> list[int]:
    """Numbers of tokens of steps that together launch every kernel of steps beyond the graphs, of up to `most`: experts
    have tiles for each of TUNED_TOKENS, and whatever else changes does so between two of them."""
    return [size for size in TUNED_TOKENS if largest_graph < size < most] + [most] * (most > largest_graph)


def work_arrays(step: StepInput, tile_tokens: Sequence[int], tokens: int) -> list[np.ndarray]:
    """For each number of query tokens of an attention tile, as many tiles [n, 2] int32 as any step of `tokens` tokens
    and as many requests may need: the step's, which is filled, and others of a request without tokens."""
    arrays, prefix_lens = [], step.seq_lens - step.extend_lens
    empty = int(np.flatnonzero(step.extend_lens == 0)[0])
    for tile in tile_tokens:
        work = make_work(prefix_lens, step.extend_lens, tile)
        tiles = np.zeros((tokens // tile + len(step.rows), 2), dtype=np.int32)
        tiles[:, 0] = empty
        tiles[: len(work)] = work
        arrays.append(tiles)
    return arrays


class Graph(NamedTuple):
    tokens: int
    replay: Callable[[], None]
    numbers: Tensor
    work: Tensor
    outputs: tuple[ForwardBatch, Tensor]


class PrefillGraphs:
    """`run` must not wait for the device, nor branch on its data. A step has up to `most` tokens and `max_requests`
    requests, a prompt up to `longest` tokens; `tile_tokens` are the backend's."""

    def __init__(
        self,
        run: Run,
        tile_tokens: Sequence[int],
        most: int,
        max_requests: int,
        longest: int,
        device: torch.device,
    ):
        self._tile_tokens = tile_tokens
        self._max_requests = min(max_requests, MAX_REQUESTS)
        sizes = prefill_sizes(min(most, self._max_requests * longest), longest)
        self._graphs: list[Graph] = []
        pool = None
        with captures(f"{len(sizes)} sizes of prefills up to {sizes[-1]} tokens", device):
            for size in reversed(sizes):
                host_numbers, host_work = self._host_arrays(padding_step(size, longest), size)
                numbers, work = (torch.from_numpy(a).to(device) for a in (host_numbers, np.concatenate(host_work)))
                tiles = list(work.split([len(a) for a in host_work]))
                replay, outputs, pool = capture(partial(run, numbers, tiles, self._requests(size)), pool, device)
                self._graphs.insert(0, Graph(size, replay, numbers, work, outputs))

    @property
    def largest(self) -> int:
        """Tokens of the largest graph."""
        return self._graphs[-1].tokens

    def _requests(self, tokens: int) -> int:
        """Requests in a graph of so many tokens: each has one at least, padding's may have none."""
        return min(self._max_requests, tokens) + PADDING_REQUESTS

    def _host_arrays(self, step: StepInput, tokens: int) -> tuple[np.ndarray, list[np.ndarray]]:
        step = filled(step, tokens, self._requests(tokens))
        return layout(step), work_arrays(step, self._tile_tokens, tokens)

    def takes(self, step: StepInput) -> bool:
        """Whether the step, which has prompts, fits the largest graph."""
        decodes = step.seq_lens[step.num_extends :]
        fits = step.extend_lens.sum() <= self.largest and len(step.rows) <= self._max_requests
        return bool(fits and decodes.max(initial=0) <= MAX_DECODE_KEYS)

    def run(self, step: StepInput) -> tuple[ForwardBatch, Tensor]:
        """The step's batch and hidden states, padding at their ends included; valid until the next run."""
        tokens = step.extend_lens.sum()
        graph = next(graph for graph in self._graphs if graph.tokens >= tokens)
        numbers, work = self._host_arrays(step, graph.tokens)
        fill(graph.numbers, numbers)
        fill(graph.work, np.concatenate(work))
        graph.replay()
        return graph.outputs
