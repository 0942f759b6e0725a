"""Environment variables named SGLANG_...: those this package reads, and a word about any other that is set."""

import logging
import os
from collections.abc import Mapping

logger = logging.getLogger(__name__)

PREFIX = "SGLANG_"
READ = frozenset(
    """
    SGLANG_API_KEY
    SGLANG_DISABLE_DEPENDENT_LAUNCH
    SGLANG_DISABLE_FUSED_QKV_ROPE
    SGLANG_DISABLE_FUSED_RESIDUAL_NORMS
    SGLANG_DISABLE_FUSED_ROUTER_NORM
    SGLANG_DISABLE_FUSED_TOPK_SOFTMAX
    SGLANG_DISABLE_HOPPER_EXTEND_TILES
    SGLANG_DISABLE_MOE_CONFIGS
    SGLANG_DISABLE_QKV_NORM_PER_HEAD
    SGLANG_DISABLE_SIDE_STREAM
    SGLANG_EVAL_OUTPUT
    SGLANG_EXTRA_SERVER_ARGS
    SGLANG_MOE_CONFIG_DIR
    SGLANG_RETURN_ORIGINAL_LOGPROB
    SGLANG_TEST_WEEKLY
    SGLANG_TORCH_PROFILER_DIR
    """.split()
)


def unread(environ: Mapping[str, str]) -> list[str]:
    """Names of set variables that look like ours and have no effect, which upstream's users should hear of."""
    return sorted(name for name in environ if name.startswith(PREFIX) and name not in READ)


def warn_of_unread() -> None:
    if names := unread(os.environ):
        logger.warning("these environment variables have no effect here: %s", ", ".join(names))


def is_on(name: str) -> bool:
    """A switch: on when it is 1 or true."""
    return os.environ.get(name, "").lower() in ("1", "true")
