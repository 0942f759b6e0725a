"""Linear layers and how their weights are laid out. They know nothing of files; the loader asks for `parts`.

A layer that fuses several checkpoint tensors names them, so that each is copied into its slice of the one parameter.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sglang.srt.distributed.tensor_parallel import SINGLE, Share, TensorParallel
from sglang.srt.layers.parameters import Extent, parameter
from sglang.srt.ops.products.linear import linear


class Linear(nn.Module):
    """y = x W^T (+ b); weight [out, in]. A Share as `out_features` gives this rank's part of y."""

    def __init__(self, in_features: int, out_features: Extent, bias: bool = False):
        super().__init__()
        self.weight = parameter(out_features, in_features)
        self.bias = parameter(out_features) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class RowLinear(nn.Module):
    """y = x W^T (+ b) where x [T, in] is this rank's part of the inputs; y is summed over the ranks."""

    def __init__(self, in_features: Share, out_features: int, bias: bool = False, tp: TensorParallel = SINGLE):
        super().__init__()
        self.tp = tp
        self.weight = parameter(out_features, in_features)
        self.bias = parameter(out_features) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.tp.size == 1 or self.bias is None:
            return self.tp.all_reduce(linear(x, self.weight, self.bias))
        return self.tp.all_reduce(linear(x, self.weight)) + self.bias  # once, not once a rank

    def partial(self, x: Tensor) -> Tensor:
        """This rank's part of the sum, for a caller that sums it together with others. Only without a bias."""
        return linear(x, self.weight)


class FusedLinear(nn.Module):
    """Several linear layers of one input as one product: `outputs` maps each checkpoint name to the rows of it that
    this rank has, in order.

    Returns the results side by side, [T, sum of rows].
    """

    def __init__(self, in_features: int, outputs: dict[str, Share], bias: bool = False):
        super().__init__()
        self.outputs = outputs
        rows = sum(share.size for share in outputs.values())
        self.weight = parameter(rows, in_features)
        self.bias = parameter(rows) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def parts(self, tensor: Tensor) -> Iterator[tuple[str, Tensor, tuple[Extent, ...]]]:
        """(checkpoint name, its rows as a view, which part of the checkpoint's tensor they are) of weight or bias."""
        views = torch.split(tensor, [share.size for share in self.outputs.values()])
        for (name, share), view in zip(self.outputs.items(), views, strict=True):
            yield name, view, (share, *view.shape[1:])


class QKVLinear(FusedLinear):
    """q_proj, k_proj and v_proj in one; with `has_v` off only q and k (V is made of the raw K)."""

    def __init__(
        self,
        hidden_size: int,
        total_num_heads: int,
        total_num_kv_heads: int,
        head_dim: int,
        bias: bool = False,
        has_v: bool = True,
        tp: TensorParallel = SINGLE,
    ):
        kv = tp.share_kv_heads(total_num_kv_heads, head_dim)
        outputs = {"q_proj": tp.share_heads(total_num_heads, head_dim), "k_proj": kv}
        if has_v:
            outputs["v_proj"] = kv
        super().__init__(hidden_size, outputs, bias)


class GateUpLinear(FusedLinear):
    """gate_proj and up_proj in one."""

    def __init__(self, hidden_size: int, intermediate_size: int, bias: bool = False, tp: TensorParallel = SINGLE):
        share = tp.share(intermediate_size, "the intermediate size")
        super().__init__(hidden_size, {"gate_proj": share, "up_proj": share}, bias)
