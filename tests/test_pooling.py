from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pad.backbones.pooling import _Blur, blurred_max_pool, relu

SIDES = (2, 3, 4, 7, 12, 13)


def noise(side: int, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side)).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def expected_pool(x: Tensor) -> Tensor:
    """Step by step with torch's own functions, in the type of x."""
    x = F.max_pool2d(x, 2, stride=1)
    x = F.pad(x, (1, 1, 1, 1), mode="reflect" if x.shape[-1] > 1 else "replicate")
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=x.dtype) / 16
    return F.conv2d(x, kernel.expand(x.shape[1], 1, 3, 3), stride=2, groups=x.shape[1])


@pytest.mark.parametrize("side", SIDES)
def test_pooling_and_its_gradient_equal_torchs_own_step_by_step(side: int) -> None:
    x = noise(side).relu().requires_grad_()
    found, expected = blurred_max_pool(x), expected_pool(x)
    assert found.shape[-1] == side // 2
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, x, direction), torch.autograd.grad(expected, x, direction)
    )
    torch.testing.assert_close(blurred_max_pool(x.detach()), expected)


@pytest.mark.parametrize("side", SIDES)
def test_the_blurs_gradient_against_finite_differences(side: int) -> None:
    assert torch.autograd.gradcheck(_Blur.apply, noise(side).requires_grad_())


@pytest.mark.parametrize("side", SIDES)
def test_bfloat16_stays_itself_within_its_rounding_under_autocast_too(side: int) -> None:
    x = noise(side, torch.bfloat16).relu()
    expected = expected_pool(x.float())
    for needs_gradient in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            found = blurred_max_pool(x.clone().requires_grad_(needs_gradient))
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_relu_of_every_sign_and_of_what_is_not_finite(dtype: torch.dtype) -> None:
    special = torch.tensor([0.0, -0.0, 1e-38, -1e-38, float("inf"), float("-inf"), 3.0, -3.0], dtype=dtype)
    x = torch.cat([special, noise(9, dtype).flatten()])
    torch.testing.assert_close(relu(x.clone()), F.relu(x), rtol=0, atol=0)
    torch.testing.assert_close(relu(x.clone().requires_grad_()), F.relu(x), rtol=0, atol=0)
