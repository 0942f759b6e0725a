"""From a checkpoint's tensor names to the parameters (or parts of them) they fill. It opens no file, copies nothing."""

from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from torch import Tensor, nn

from sglang.srt.distributed.tensor_parallel import Share
from sglang.srt.layers.linear import FusedLinear
from sglang.srt.layers.parameters import Extent


@dataclass(frozen=True)
class WeightMap:
    """What a family's files call things, where that is not simply the module's name.

    `prefixes`: in the file -> in the model, the first that fits wins; a name that none fits stays as it is.
    `renamed`: prefixes of model names (after the above) whose module lives elsewhere.
    `other_modalities`: prefixes of tensors of parts this server does not run; skipped and counted.
    `buffers`: endings of tensors that old files hold and that we compute.
    """

    prefixes: dict[str, str]
    renamed: dict[str, str] | None = None
    other_modalities: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()

    def is_other_modality(self, name: str) -> bool:
        return name.startswith(self.other_modalities)

    def model_name(self, name: str) -> str:
        """The checkpoint's name as the model's modules would say it, fused layers still apart."""
        for table in (self.prefixes, self.renamed or {}):
            prefix = next((p for p in table if name.startswith(p)), None)
            if prefix is not None:
                name = table[prefix] + name[len(prefix) :]
        return name


class Target(NamedTuple):
    """Where a checkpoint's tensor goes: `view` holds the part of it that `extents` tell, one for each dimension."""

    view: Tensor
    extents: tuple[Extent, ...]

    @property
    def full_shape(self) -> tuple[int, ...]:
        """The checkpoint tensor's shape."""
        return tuple(extent.full if isinstance(extent, Share) else extent for extent in self.extents)

    @property
    def is_whole(self) -> bool:
        return self.full_shape == tuple(self.view.shape)

    def fill(self, source) -> None:
        """Copy this rank's part of `source`, a full tensor or a slice of a safetensors file (read no further)."""
        dim = next(i for i, extent in enumerate(self.extents) if isinstance(extent, Share))
        ranges = self.extents[dim].ranges
        for place, (start, end) in zip(
            self.view.split([end - start for start, end in ranges], dim), ranges, strict=True
        ):
            place.copy_(source[(slice(None),) * dim + (slice(start, end),)])


def checkpoint_views(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor the model wants from a checkpoint: name -> the (view of a) parameter or persistent buffer it fills.

    The views cover each parameter exactly once, so filling all of them leaves no element unset.
    """
    return {name: target.view for name, target in checkpoint_targets(model).items()}


def checkpoint_targets(model: nn.Module) -> dict[str, Target]:
    """checkpoint_views, with what part of the checkpoint's tensor each is."""
    targets: dict[str, Target] = {}
    for module_name, module in model.named_modules():
        fused = isinstance(module, FusedLinear)
        for name, tensor in chain(module.named_parameters(recurse=False), _persistent_buffers(module)):
            if fused:
                parent = module_name.rpartition(".")[0]
                for part, view, extents in module.parts(tensor):
                    targets[f"{parent}.{part}.{name}"] = Target(view, extents)
            else:
                extents = getattr(tensor, "extents", tuple(tensor.shape))  # a buffer has none
                targets[f"{module_name}.{name}" if module_name else name] = Target(tensor, extents)
    return targets


def _persistent_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    derived = module._non_persistent_buffers_set
    return [(name, buffer) for name, buffer in module.named_buffers(recurse=False) if name not in derived]
