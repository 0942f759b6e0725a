"""How a layer makes its parameters: uninitialised, in the default dtype and device the loader has set, no gradient."""

import torch
from torch import nn


def parameter(*shape: int) -> nn.Parameter:
    """The loader fills every element or fails; drawing initial values here would only cost start-up time."""
    return nn.Parameter(torch.empty(*shape), requires_grad=False)
