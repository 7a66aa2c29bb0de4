"""Adversarial losses: WGAN-GP with a drift (norm) penalty (arXiv:1909.05904, section 3; arXiv:1704.00028).

`critic` maps a batch (n, ...) to criticisms (n,); higher means "real".
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pad import distributed

Critic = Callable[[Tensor], Tensor]


def gradient_penalty(critic: Critic, real: Tensor, fake: Tensor, generator: torch.Generator) -> Tensor:
    """E[(||grad_h D(h)||_2 - 1)^2], h = alpha real + (1 - alpha) fake, alpha uniform per sample; a scalar."""
    count = len(real) * distributed.world()
    alpha = torch.rand(count, *[1] * (real.dim() - 1), generator=generator, dtype=torch.float32)
    alpha = distributed.share(alpha).to(device=real.device, dtype=real.dtype)
    h = (alpha * real + (1 - alpha) * fake).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(h).sum(), h, create_graph=True)
    norm = (gradient.float().flatten(1).square().sum(1) + 1e-12).sqrt()
    return (norm - 1).square().mean()


def critic_loss(real_criticism: Tensor, fake_criticism: Tensor, drift: float) -> Tensor:
    """E[D(b)] - E[D(a)] + eps (E[D(a)^2] + E[D(b)^2]), real a, fake b; a scalar, without the penalty."""
    wasserstein = fake_criticism.mean() - real_criticism.mean()
    return wasserstein + drift * (real_criticism.square().mean() + fake_criticism.square().mean())


def adversarial_loss(fake_criticism: Tensor) -> Tensor:
    """-E[D(fake)]: L_G for D_x on G(z), L_E for D_z on E(x); a scalar."""
    return -fake_criticism.mean()
