"""Builds a model and fills it from a folder of safetensors, or with random weights. Every element of every parameter is
set from a tensor of the right shape, or loading fails and says which were not."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from sglang.srt.configs.architectures import drafter_class, model_class
from sglang.srt.configs.config_file import PLAIN
from sglang.srt.configs.model_config import DTYPE_NAMES, DrafterConfig, ModelConfig
from sglang.srt.distributed.tensor_parallel import SINGLE, TensorParallel
from sglang.srt.model_loader.checkpoint import FLOAT_TYPES, TensorInfo, checkpoint_files, open_shard, read_headers
from sglang.srt.model_loader.stored_head import drafter_head, stored_head
from sglang.srt.model_loader.weight_map import Target, WeightMap, checkpoint_targets

logger = logging.getLogger(__name__)

LOAD_FORMATS = ("auto", "safetensors", "dummy")
INTEGER_TYPES = ("I32", "I64")
QUANTIZED_PARTS = {  # last parts of tensors' names: compressed-tensors, modelopt, GPTQ, AWQ, bitsandbytes
    "weight_packed", "weight_scale", "weight_scale_inv", "weight_scale_2", "weight_shape", "weight_zero_point",
    "weight_global_scale", "input_scale", "input_global_scale", "output_scale", "k_scale", "v_scale", "kv_scale",
    "qweight", "qzeros", "scales", "g_idx", "absmax", "quant_map", "nested_absmax", "SCB",
}  # fmt: skip
DUMMY_STD = 0.02
DUMMY_SEED = 0
LISTED = 10  # tensors an error names before it only counts


def load_model(config: ModelConfig, load_format: str, device: torch.device, tp: TensorParallel = SINGLE) -> nn.Module:
    """This rank's part of the model on `device` in config's dtype, ready to run (eval, no gradients).

    `load_format`: auto and safetensors read the folder; dummy draws weights from normal(0, 0.02), norms and scales 1.
    Raises ValueError with one message that lists missing, misshapen and unexpected tensors.
    """
    sources, names = _headers(config.path, load_format), {}
    if sources is not None:
        weights = model_class(config.architectures).WEIGHTS
        tied, names = stored_head(config.text.tie_word_embeddings, weights, sources, config.torch_dtype)
        config = replace(config, text=replace(config.text, tie_word_embeddings=tied))
    return _load(lambda place: build_model(config, place, tp), sources, names, device)


def load_drafter(
    drafter: str | DrafterConfig,
    target_config: ModelConfig,
    target_model: nn.Module,
    load_format: str,
    dtype: torch.dtype,
    device: torch.device,
    tp: TensorParallel = SINGLE,
) -> nn.Module:
    """This rank's part of the drafter of `target_model`, bound to it. `drafter` is its folder, or that already read.

    `load_format` and errors as in load_model; a drafter that does not fit the target is a ValueError too, as is a
    `dtype` that is not the target's, whose KV it reads.
    """
    if dtype != target_config.torch_dtype:
        raise ValueError(
            f"a drafter in {DTYPE_NAMES.get(dtype, dtype)} can't read the KV of a target in {target_config.dtype}"
        )
    config = DrafterConfig.load(drafter) if isinstance(drafter, str) else drafter
    sources = _headers(config.path, load_format)
    names = {} if sources is None else drafter_head(config.assistant.tie_word_embeddings, sources)
    model = _load(lambda place: build_drafter(config, target_config, place, tp), sources, names, device)
    model.check_weights()
    model.bind(target_model)
    return model


def _headers(path: str, load_format: str) -> dict[str, TensorInfo] | None:
    """The folder's tensors by name; None where they are not read."""
    if load_format not in LOAD_FORMATS:
        raise ValueError(f"load format {load_format!r} is not supported; supported: {', '.join(LOAD_FORMATS)}")
    return None if load_format == "dummy" else read_headers(checkpoint_files(Path(path)))


def _load(
    build: Callable[[torch.device], nn.Module],
    sources: dict[str, TensorInfo] | None,
    names: dict[str, str],
    device: torch.device,
) -> nn.Module:
    """What `build` makes, filled from `sources`, or at random without. `names`: model names that stand for others."""
    started = time.perf_counter()
    matched = None
    if sources is not None:  # headers against an empty shell: what does not fit is told before memory is taken
        matched = _match(build(torch.device("meta")), sources, names)
    model = build(device)
    if matched is None:
        _fill_randomly(model, device)
    else:
        _fill(checkpoint_targets(model), matched)
    name, seconds = type(model).__name__, time.perf_counter() - started
    logger.info("%s loaded in %.1f s (%s, %s)", name, seconds, "dummy" if matched is None else "safetensors", device)
    return model


def build_model(config: ModelConfig, device: torch.device, tp: TensorParallel) -> nn.Module:
    """This rank's part of the model, its parameters not yet set."""
    with _defaults(config.torch_dtype, device):
        model = model_class(config.architectures)(config, tp)
    return model.eval().requires_grad_(False)


def build_drafter(
    config: DrafterConfig, target_config: ModelConfig, device: torch.device, tp: TensorParallel
) -> nn.Module:
    """The same of a drafter, in the target's dtype; it is not bound. ValueError if it does not fit the target."""
    with _defaults(target_config.torch_dtype, device):
        model = drafter_class(config.architectures)(config, target_config, tp)
    return model.eval().requires_grad_(False)


@contextmanager
def _defaults(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Modules made inside have their parameters in `dtype` on `device`."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(previous)


def _match(
    model: nn.Module, sources: dict[str, TensorInfo], names: dict[str, str]
) -> dict[str, tuple[str, TensorInfo]]:
    """Model tensor name -> (name in the file, where it is), all of them, rightly shaped; else ValueError."""
    weights: WeightMap = model.WEIGHTS
    _check_plain({name: info for name, info in sources.items() if not weights.is_other_modality(name)})
    targets = checkpoint_targets(model)
    wanted = {name: target.full_shape for name, target in targets.items()}
    unused = model.unused_weights()
    matched: dict[str, tuple[str, TensorInfo]] = {}
    problems: list[str] = []
    skipped = ignored = 0
    for name, info in sorted(sources.items()):
        target = weights.model_name(name)
        target = names.get(target, target)
        if weights.is_other_modality(name):
            skipped += 1
        elif target in unused or name.endswith(weights.buffers or ("\0",)):
            ignored += 1
        elif target not in wanted:
            problems.append(f"unexpected {name} {list(info.shape)}")
        elif target in matched:
            problems.append(f"{name} and {matched[target][0]} are both {target}")
        elif info.shape != wanted[target]:
            matched[target] = (name, info)
            problems.append(f"{name} has shape {list(info.shape)}, expected {list(wanted[target])}")
        elif info.dtype not in (FLOAT_TYPES if targets[target].view.is_floating_point() else INTEGER_TYPES):
            matched[target] = (name, info)
            problems.append(f"{name} has type {info.dtype}, which is not supported")
        else:
            matched[target] = (name, info)
    problems[:0] = [f"missing {name} {list(shape)}" for name, shape in wanted.items() if name not in matched]
    if problems:
        more = f" ... and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise ValueError(
            f"the weights do not fit config.json ({len(problems)} tensors): {'; '.join(problems[:LISTED])}{more}"
        )
    if skipped or ignored:
        logger.info("skipped %d vision and audio tensors, ignored %d unused ones", skipped, ignored)
    return matched


def _check_plain(sources: dict[str, TensorInfo]) -> None:
    """ValueError for what no plain checkpoint holds: packed weights and their scales, whatever config.json says."""
    for name, info in sources.items():
        packed = info.dtype not in FLOAT_TYPES and info.dtype not in INTEGER_TYPES
        if packed or name.rpartition(".")[2] in QUANTIZED_PARTS:
            raise ValueError(f"the weights are quantized ({name} of type {info.dtype}): {PLAIN}")


@torch.no_grad()
def _fill(targets: dict[str, Target], matched: dict[str, tuple[str, TensorInfo]]) -> None:
    """One copy a tensor, from the mapped file into its place; a shard is mapped only while it is read."""
    by_file: dict[Path, list[tuple[str, str]]] = defaultdict(list)
    for target, (name, info) in matched.items():
        by_file[info.file].append((name, target))
    for file, names in by_file.items():
        with open_shard(file) as shard:
            for name, target in names:
                place = targets[target]
                if place.is_whole:
                    place.view.copy_(shard.get_tensor(name))
                else:
                    place.fill(shard.get_slice(name))


@torch.no_grad()
def _fill_randomly(model: nn.Module, device: torch.device) -> None:
    """Matrices from normal(0, DUMMY_STD), norms and scales 1, biases 0, integers (an order of something) a permutation;
    the same for the same config and device.

    A part is cut from the full tensor, so the model does not depend on how many ranks share it.
    """
    generator = torch.Generator(device).manual_seed(DUMMY_SEED)
    for name, target in checkpoint_targets(model).items():
        view = target.view
        if not view.is_floating_point():
            view.copy_(torch.randperm(len(view), generator=generator, device=device))
        elif view.dim() > 1 and not target.is_whole:
            full = torch.empty(target.full_shape, dtype=view.dtype, device=device)
            target.fill(full.normal_(0, DUMMY_STD, generator=generator))
        elif view.dim() > 1:
            view.normal_(0, DUMMY_STD, generator=generator)
        else:
            view.fill_(0 if name.endswith(".bias") else 1)
