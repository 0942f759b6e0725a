"""Muon (Keller Jordan, 2024): momentum whose update is made orthogonal by five Newton-Schulz steps.

For weight matrices, also stacks of them ([experts, rows, columns]). Everything else is AdamW's.
"""

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalized(update: Tensor) -> Tensor:
    """update [N, rows, columns] -> the nearest semi-orthogonal matrices, roughly, in bf16."""
    a, b, c = COEFFICIENTS
    x = update.bfloat16()
    wide = x.shape[-1] >= x.shape[-2]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


compiled = torch.compile(orthogonalized, dynamic=False)


class Muon(torch.optim.Optimizer):
    def __init__(self, parameters, lr: float, momentum: float = 0.95, weight_decay: float = 0.1):
        super().__init__(list(parameters), dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = {}
            for p in group["params"]:
                by_shape.setdefault(tuple(p.shape[-2:]), []).append(p)
            for shape, members in by_shape.items():
                updates = []
                for p in members:
                    buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    buffer.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(buffer, group["momentum"]).view(-1, *shape))
                orthogonal = compiled if updates[0].is_cuda else orthogonalized
                done = orthogonal(torch.cat(updates)).split([len(u) for u in updates])
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for p, u in zip(members, done, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(u.reshape(p.shape).to(p.dtype), alpha=-scale)
