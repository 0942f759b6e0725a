"""PrefillGraphs: prefill and mixed steps captured for several numbers of tokens, so that a step costs one launch.

What a step consists of is data: its tokens, their requests, the tiles of attention. It runs in the smallest graph that
holds it. Tokens left over are a prompt of nobody's (request row 0, slot 0 of both pools), tiles left over belong to a
request without tokens. A decode row is a prompt of one token here, so its keys are not shared among programs: steps
with long ones are not taken.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sglang.srt.layers.attention.triton_ops.extend_attention import make_work
from sglang.srt.model_executor.cuda_graph_runner import capture
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.model_executor.step_io import StepInput
from sglang.srt.model_executor.warm_up import nobodys_step
from sglang.srt.utils.device_copies import fill

logger = logging.getLogger(__name__)

MAX_REQUESTS = 64
MAX_DECODE_KEYS = 8192
NOBODYS = 2  # requests of a graph beyond the step's: one without tokens, one with those left over
LAST_TOKEN = -1  # among the ids: the row's newest token, which the device knows
PER_TOKEN = ("token_rows", "positions", "out_cache_loc", "out_cache_loc_swa", "ids")
PER_REQUEST = ("rows", "seq_lens", "extend_lens", "prefix_lens", "starts")


def prefill_sizes(most: int, longest: int) -> list[int]:
    """Numbers of tokens up to `most`, itself included: a sixteenth apart from 1024 on. What may be left over fits into
    a prompt of `longest`."""
    sizes, size = [], 0
    while size < most:
        size = min(most, size + min(longest, 64 if size < 1024 else size // 16 // 64 * 64))
        sizes.append(size)
    return sizes


@dataclass(frozen=True)
class StepShape:
    """`tokens` and `requests` (nobody's included) of a graph; `tile_tokens`: query tokens of an attention tile, one
    number for each head geometry."""

    tokens: int
    requests: int
    tile_tokens: tuple[int, ...]

    def tiles(self, tile: int) -> int:
        """As many tiles of `tile` tokens as there can be: each request may have one that is not full."""
        return self.tokens // tile + self.requests

    def split_numbers(self, numbers: Tensor) -> dict[str, Tensor]:
        """The arrays of host_arrays() by PER_TOKEN's and PER_REQUEST's names, as views."""
        tokens, requests = numbers.split([len(PER_TOKEN) * self.tokens, len(PER_REQUEST) * self.requests])
        named = dict(zip(PER_TOKEN, tokens.view(len(PER_TOKEN), -1), strict=True))
        return named | dict(zip(PER_REQUEST, requests.view(len(PER_REQUEST), -1), strict=True))

    def split_work(self, work: Tensor) -> dict[int, Tensor]:
        """Attention's tiles by `tile_tokens`, each [tiles, 2], as views."""
        return dict(zip(self.tile_tokens, work.split([self.tiles(t) for t in self.tile_tokens]), strict=True))

    def host_arrays(self, step: StepInput) -> tuple[np.ndarray, np.ndarray]:
        """(numbers int64, work int32 [tiles, 2]) of a step that fits, padded."""
        count, used = len(step.rows), int(step.extend_lens.sum())
        left = self.tokens - used
        padding = np.zeros(self.requests - count, dtype=np.int64)
        rows = np.concatenate((step.rows, padding))
        padding[-1] = left
        lengths, seq_lens = np.concatenate((step.extend_lens, padding)), np.concatenate((step.seq_lens, padding))
        prefix_lens, starts = seq_lens - lengths, np.cumsum(lengths) - lengths
        ids = np.full(self.tokens, LAST_TOKEN, dtype=np.int64)
        ids[: len(step.prefill_ids)] = step.prefill_ids
        ids[used:] = 0
        nobodys_slots = np.zeros(left, dtype=np.int64)
        numbers = (
            np.repeat(rows, lengths),
            np.arange(self.tokens) + np.repeat(prefix_lens - starts, lengths),
            step.out_cache_loc,
            nobodys_slots,
            step.out_cache_loc_swa,
            nobodys_slots,
            ids,
            rows,
            seq_lens,
            lengths,
            prefix_lens,
            starts,
        )
        work = []
        for tile in self.tile_tokens:
            tiles = np.zeros((self.tiles(tile), 2), dtype=np.int32)
            real = make_work(prefix_lens, lengths, tile)
            tiles[: len(real)], tiles[len(real) :, 0] = real, count  # the request without tokens
            work.append(tiles)
        return np.concatenate(numbers), np.concatenate(work)


class PrefillGraphs:
    """`run(numbers, work, shape)` takes StepShape's arrays on the device and returns a batch of their parts and its
    hidden states [tokens, H]; it must not wait for the device, nor branch on its data. Prompts have up to `longest`
    tokens. `capture` as cuda_graph_runner's."""

    def __init__(
        self,
        run: Callable[[Tensor, Tensor, StepShape], tuple[ForwardBatch, Tensor]],
        most: int,
        max_requests: int,
        longest: int,
        tile_tokens: tuple[int, ...],
        device: torch.device,
        capture: Callable = capture,
    ):
        started = time.monotonic()
        self._max_requests = min(max_requests, MAX_REQUESTS)
        sizes = prefill_sizes(min(most, self._max_requests * longest), longest)
        self._graphs: list[tuple[StepShape, Callable[[], None], Tensor, Tensor, tuple[ForwardBatch, Tensor]]] = []
        pool = None
        for size in reversed(sizes):
            shape = StepShape(size, self._max_requests + NOBODYS, tile_tokens)
            numbers, work = (torch.from_numpy(a).to(device) for a in shape.host_arrays(nobodys_step(size, longest)))
            replay, outputs, pool = capture(partial(run, numbers, work, shape), pool, device)
            self._graphs.insert(0, (shape, replay, numbers, work, outputs))
        seconds = time.monotonic() - started
        logger.info("CUDA graphs: %d sizes of prefills up to %d tokens, %.1f s", len(sizes), sizes[-1], seconds)

    def takes(self, step: StepInput) -> bool:
        """Whether the step, which has prompts, fits the largest graph."""
        decodes = step.seq_lens[step.num_extends :]
        fits = step.extend_lens.sum() <= self._graphs[-1][0].tokens and len(step.rows) <= self._max_requests
        return bool(fits and decodes.max(initial=0) <= MAX_DECODE_KEYS)

    def run(self, step: StepInput) -> tuple[ForwardBatch, Tensor]:
        """The step's batch and hidden states, what is nobody's at their ends included; valid until the next run."""
        tokens = step.extend_lens.sum()
        shape, replay, numbers, work, outputs = next(graph for graph in self._graphs if graph[0].tokens >= tokens)
        for static, values in zip((numbers, work), shape.host_arrays(step), strict=True):
            fill(static, values)
        replay()
        return outputs
