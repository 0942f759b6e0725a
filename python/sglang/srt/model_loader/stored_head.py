"""What a checkpoint's head is: its embedding, or a matrix of its own. Told from tie_word_embeddings and from what the
files hold, as transformers tells it when it loads."""

import logging

import torch

from sglang.srt.model_loader.checkpoint import TensorInfo, open_shard
from sglang.srt.model_loader.weight_map import WeightMap

logger = logging.getLogger(__name__)

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"  # as the model's modules say it
ROWS = 8192  # of both matrices that are compared at a time


def stored_head(
    tied: bool, weights: WeightMap, sources: dict[str, TensorInfo], dtype: torch.dtype
) -> tuple[bool, dict[str, str]]:
    """(whether the head is the embedding, model names that stand for another one in these files).

    `tied` is what the config says. Where the files hold both matrices and they differ in `dtype`, the head is its own
    whatever the config says; where they hold only a head, a tied model embeds with it.
    """
    names = {weights.model_name(name): name for name in sources}
    if not tied or HEAD not in names:
        return tied, {}
    if EMBEDDING not in names:
        return True, {HEAD: EMBEDDING}
    if _equal(names[HEAD], names[EMBEDDING], sources, dtype):
        return True, {}
    logger.warning("%s differs from the embedding: used as the head, although tie_word_embeddings is true", names[HEAD])
    return False, {}


def drafter_head(tied: bool, sources: dict[str, TensorInfo]) -> dict[str, str]:
    """The same for a drafter, whose embedding is nothing but a head: model names that stand for another one."""
    if HEAD in sources:
        return {HEAD: EMBEDDING, EMBEDDING: HEAD}
    if not tied:
        raise ValueError(f"the weights do not fit config.json: tie_word_embeddings is false, but there is no {HEAD}")
    return {}


def _equal(first: str, second: str, sources: dict[str, TensorInfo], dtype: torch.dtype) -> bool:
    if sources[first].shape != sources[second].shape:
        return False
    with open_shard(sources[first].file) as one, open_shard(sources[second].file) as other:
        a, b = one.get_slice(first), other.get_slice(second)
        return all(
            torch.equal(a[start : start + ROWS].to(dtype), b[start : start + ROWS].to(dtype))
            for start in range(0, sources[first].shape[0], ROWS)
        )
