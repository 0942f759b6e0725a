"""Inputs on which a rounding too few or a sum in another order shows, and how far a float32 sum may be off."""

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def normal(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def signed_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return normal(shape, dtype).sign() * 0.0


def subnormals(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return normal(shape, dtype) * torch.finfo(dtype).smallest_normal


def huge(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return (normal(shape, torch.float32) * 1e4).to(dtype)


def wide_range(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Sums of such squares depend on their order the most."""
    x = normal(shape, torch.float32) * torch.exp(4 * normal(shape, torch.float32))
    return x.clamp(-1e4, 1e4).to(dtype)  # float16 ends at 65504


def one_after_another(x: Tensor, weight: Tensor) -> Tensor:
    """x [M, K], weight [N, K] -> [M, N] float64: what float32 rounding may do to a sum that is added up one product
    after another, if it goes as random walks do: 2^-24 sqrt(K) times the sum of the magnitudes."""
    return 2**-24 * x.shape[1] ** 0.5 * (x.double().abs() @ weight.double().abs().T)
