from __future__ import annotations

import numpy as np
import torch

from pad.learning.balancing import GradientNormalizer


def test_weight_against_a_direct_computation() -> None:
    """The rule written out: smooth each layer's series, divide, take the median over layers and history."""
    rng = np.random.default_rng(0)
    shapes = [(4, 3, 3, 3), (8, 4, 1, 1), (6, 8)]
    normalizer = GradientNormalizer(target=2.0, smoothing=0.05, history=4)
    series: list[list[list[float]]] = []
    for _ in range(9):
        adversarial = [torch.from_numpy(rng.normal(0, 3, s)) for s in shapes]
        reconstruction = [torch.from_numpy(rng.normal(0, 0.5, s)) for s in shapes]
        weight = normalizer.update(adversarial, reconstruction)
        series.append(
            [[g.numpy().std(ddof=1) for g in adversarial], [g.numpy().std(ddof=1) for g in reconstruction]]
        )
    values = np.array(series)
    smooth = [values[0]]
    for value in values[1:]:
        smooth.append(0.05 * value + 0.95 * smooth[-1])
    ratios = np.array([s[0] / s[1] for s in smooth])[-4:]
    np.testing.assert_allclose(weight, 2.0 * np.median(ratios), rtol=1e-5)


def test_gradients_that_are_missing_or_zero_are_left_out() -> None:
    normalizer = GradientNormalizer()
    assert normalizer.weight == 1.0
    g = torch.tensor([1.0, -1.0])
    weight = normalizer.update([4 * g, None, g], [2 * g, g, 0 * g])
    assert weight == 2.0


def test_state_goes_on_where_it_stopped() -> None:
    def measure(seed: int) -> list[torch.Tensor]:
        return [torch.randn(5, generator=torch.Generator().manual_seed(seed + i)) for i in range(3)]

    whole, first = GradientNormalizer(history=3), GradientNormalizer(history=3)
    for step in range(5):
        whole.update(measure(step), measure(100 + step))
        first.update(measure(step), measure(100 + step))
    second = GradientNormalizer(history=3)
    second.load_state_dict(first.state_dict())
    for step in range(5, 8):
        assert whole.update(measure(step), measure(100 + step)) == second.update(
            measure(step), measure(100 + step)
        )
