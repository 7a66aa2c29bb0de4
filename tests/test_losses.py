from __future__ import annotations

import numpy as np
import torch

from pad.learning.losses import adversarial_loss, critic_loss, gradient_penalty


def test_penalty_of_a_linear_critic() -> None:
    """D(x) = w.x has gradient w everywhere: a penalty of (|w| - 1)^2, with gradient 2 (|w| - 1) w / |w|."""
    w = torch.tensor([3.0, 0.0, 4.0], requires_grad=True)
    real, fake = torch.randn(7, 3), torch.randn(7, 3)
    penalty = gradient_penalty(lambda x: x @ w, real, fake, torch.Generator().manual_seed(0))
    assert abs(penalty.item() - 16.0) < 1e-4
    (gradient,) = torch.autograd.grad(penalty, w)
    torch.testing.assert_close(gradient, 8 * torch.tensor([0.6, 0.0, 0.8]))


def test_penalty_is_taken_between_real_and_fake_per_sample() -> None:
    """D(x) = |x|^2 / 2 has gradient x: the penalty is the mean of (|h| - 1)^2 at the mixed points h."""
    real, fake = torch.randn(6, 2, 4, 4), torch.randn(6, 2, 4, 4)
    penalty = gradient_penalty(
        lambda x: x.square().flatten(1).sum(1) / 2, real, fake, torch.Generator().manual_seed(3)
    )
    alpha = torch.rand(6, 1, 1, 1, generator=torch.Generator().manual_seed(3)).numpy()
    h = alpha * real.numpy() + (1 - alpha) * fake.numpy()
    norms = np.sqrt((h**2).reshape(6, -1).sum(1))
    np.testing.assert_allclose(penalty.item(), ((norms - 1) ** 2).mean(), rtol=1e-5)


def test_penalty_second_derivatives() -> None:
    """The gradient that trains a critic against that of the formula, itself checked by finite differences."""
    torch.manual_seed(0)
    w1 = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    w2 = torch.randn(4, dtype=torch.float64, requires_grad=True)
    real, fake = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    alpha = torch.rand(5, 1, generator=torch.Generator().manual_seed(3)).double()

    def formula(w1: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
        # Training takes norms in single precision; finite differences need the whole in double.
        h = (alpha * real + (1 - alpha) * fake).requires_grad_(True)
        (g,) = torch.autograd.grad((torch.tanh(h @ w1.T) @ w2).sum(), h, create_graph=True)
        return (g.square().sum(1).sqrt() - 1).square().mean()

    assert torch.autograd.gradcheck(formula, (w1, w2))
    ours = gradient_penalty(lambda x: torch.tanh(x @ w1.T) @ w2, real, fake, torch.Generator().manual_seed(3))
    for found, expected in zip(
        torch.autograd.grad(ours, (w1, w2)), torch.autograd.grad(formula(w1, w2), (w1, w2)), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_critic_loss_and_adversarial_loss_against_numpy() -> None:
    real, fake = torch.randn(8), torch.randn(8)
    a, b = real.numpy(), fake.numpy()
    expected = b.mean() - a.mean() + 1e-3 * ((a**2).mean() + (b**2).mean())
    np.testing.assert_allclose(critic_loss(real, fake, 1e-3).item(), expected, rtol=1e-5)
    np.testing.assert_allclose(adversarial_loss(fake).item(), -b.mean(), rtol=1e-6)


def test_a_critic_trained_with_the_loss_measures_the_wasserstein_distance() -> None:
    """Two points at distance 2 in space: the best 1-Lipschitz critic tells them apart by 2."""
    torch.manual_seed(0)
    critic = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.LeakyReLU(0.2), torch.nn.Linear(32, 1))
    optimizer = torch.optim.Adam(critic.parameters(), 1e-2, betas=(0.5, 0.99))
    real, fake = torch.full((64, 4), 0.5), torch.full((64, 4), -0.5)
    random = torch.Generator().manual_seed(0)
    for _ in range(300):
        loss = critic_loss(critic(real), critic(fake), 0.0)
        loss = loss + 10 * gradient_penalty(critic, real, fake, random)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # The penalty pulls the slope towards 1 from both sides, a little above 1 where the loss pulls up.
    assert 1.8 < (critic(real) - critic(fake)).mean().item() < 2.8
