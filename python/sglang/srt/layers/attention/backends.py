"""Attention's backends by the names that --attention-backend takes."""

import torch

from sglang.srt.configs.kv_layers import KVLayerSpec
from sglang.srt.layers.attention.forward_batch import AttentionBackend
from sglang.srt.layers.attention.torch_native_backend import TorchNativeBackend
from sglang.srt.layers.attention.torch_native_tiles import TorchNativeTilesBackend
from sglang.srt.layers.attention.triton_backend import TritonBackend
from sglang.srt.ops.invariance.mode import enabled


def check_backend(
    name: str, kv_layers: list[KVLayerSpec], num_heads: int, dtype: torch.dtype, device: torch.device
) -> None:
    """ValueError with every reason why the backend can't serve such a model here; `num_heads` and `kv_layers` are the
    whole model's."""
    if name != "triton":
        return
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if reasons := TritonBackend.check(kv_layers, num_heads, dtype, capability):
        raise ValueError(f"--attention-backend triton can't serve this model here: {'; '.join(reasons)}")


def make_backend(
    name: str,
    kv_layers: list[KVLayerSpec],
    num_heads: int,
    max_batch: int,
    sliding_window: int | None,
    longest: int,
    dtype: torch.dtype,
    device: torch.device,
) -> AttentionBackend:
    """See TritonBackend for the arguments, which are this rank's."""
    if name == "triton":
        return TritonBackend(kv_layers, num_heads, max_batch, sliding_window, longest, dtype, device)
    return TorchNativeTilesBackend({spec.head_dim for spec in kv_layers}) if enabled() else TorchNativeBackend()
