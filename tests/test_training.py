from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

import pad
from pad.config import Config
from pad.errors import PadError
from pad.images.resolve import resolve
from pad.images.stream import load_all
from pad.learning.images import MemoryImages
from pad.learning.losses import adversarial_loss
from pad.learning.trainer import Sampler, Trainer, check_losses

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(boots: Path) -> MemoryImages:
    return MemoryImages(load_all(resolve([str(boots)], "train"), Config())[0])


def recipe(**settings: object) -> Config:
    fast = {
        "size": 32,
        "latent_dim": 8,
        "generator_channels": [8, 8, 8, 8],
        "encoder_channels": [8, 8, 8, 8],
        "critic_channels": [8, 8, 8, 8],
        "latent_critic_channels": [16],
        "layers": {"relu2_2": 1.0},
        "batch_size": 8,
        "steps": 20,
        "precision": "float32",
        "warm_up": 0.0,
    }
    return Config().replace(**{**fast, **settings})


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    state = {f"networks.{k}": v for k, v in trainer.networks.state_dict().items()}
    return {**state, **{f"averaged.{k}": v for k, v in trainer.averaged.state_dict().items()}}


def assert_same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [key for key in a if not torch.equal(a[key], b[key])]
    assert not different


def test_same_seed_same_bits_and_another_seed_others(images: MemoryImages) -> None:
    runs = []
    for seed in (0, 0, 1):
        trainer = Trainer(recipe(seed=seed), images, CPU)
        for i in range(3):
            trainer.step(i / 20)
        runs.append(weights_of(trainer))
    assert_same_bits(runs[0], runs[1])
    assert not torch.equal(
        runs[0]["networks.encoder.down.stem.weight"], runs[2]["networks.encoder.down.stem.weight"]
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"augment_flip": True, "augment_shift": 2, "precision": "bfloat16"},
        {"tolerate": {"brightness": 0.2, "rotation": 5.0, "flip": 1.0}},
    ],
)
def test_resumed_equals_uninterrupted(
    images: MemoryImages, tmp_path: Path, settings: dict[str, object]
) -> None:
    config = recipe(balance_every=2, gradient_penalty_every=3, latent_norm=True, warm_up=0.1, **settings)
    whole = Trainer(config, images, CPU)
    for i in range(6):
        whole.step(i / 20)
        if i == 3:
            torch.save(whole.state_dict(), tmp_path / "state.pt")
    resumed = Trainer(config, images, CPU)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for i in range(4, 6):
        resumed.step(i / 20)
    assert_same_bits(weights_of(whole), weights_of(resumed))
    assert whole.weights == resumed.weights


def test_encoder_and_generator_follow_their_own_combination(images: MemoryImages) -> None:
    """theta.grad of one step against gradients computed apart: adv / w + rec, for G and for E."""
    config = recipe(balancing="fixed", generator_weight=3.0, encoder_weight=0.5, learning_rate=1e-12)
    trainer = Trainer(config, images, CPU)
    twin = copy.deepcopy(trainer)
    trainer._encoder_generator_step(adversarial=True)
    x, reference = twin._images(with_reference=True)
    z = twin._prior(len(x))
    encoder, generator = twin.networks["encoder"], twin.networks["generator"]
    rec = twin.similarity.compare(reference, generator(encoder(x))).mean()
    adv_g = adversarial_loss(twin.networks["image_critic"](generator(z)))
    adv_e = adversarial_loss(twin.networks["latent_critic"](encoder(x)))
    for name, adv, weight in (("generator", adv_g, 3.0), ("encoder", adv_e, 0.5)):
        theta = list(twin.networks[name].parameters())
        g_adv = torch.autograd.grad(adv, theta, retain_graph=True)
        g_rec = torch.autograd.grad(rec, theta, retain_graph=True)
        for p, a, r in zip(trainer.networks[name].parameters(), g_adv, g_rec, strict=True):
            assert p.grad is not None
            torch.testing.assert_close(p.grad, a / weight + r, rtol=1e-3, atol=1e-6)


def test_measured_weights_balance_the_two_gradients(images: MemoryImages) -> None:
    """With target 1, w makes the deviations of w * rec and adv equal in the median layer."""
    trainer = Trainer(recipe(balance_every=1, balance_target=1.0), images, CPU)
    twin = copy.deepcopy(trainer)
    trainer._encoder_generator_step(adversarial=True)
    x, reference = twin._images(with_reference=True)
    encoder, generator = twin.networks["encoder"], twin.networks["generator"]
    theta = [p for p in encoder.parameters() if p.dim() > 1]
    z = encoder(x)
    rec = torch.autograd.grad(
        twin.similarity.compare(reference, generator(z)).mean(), theta, retain_graph=True
    )
    adv = torch.autograd.grad(adversarial_loss(twin.networks["latent_critic"](z)), theta)
    ratios = torch.stack([a.std() / r.std() for a, r in zip(adv, rec, strict=True) if a.numel() > 1])
    ordered = ratios.sort().values.double()
    median = float((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)
    assert trainer.weights["encoder"] == pytest.approx(median, rel=1e-3)


def test_reconstruction_gets_better(images: MemoryImages) -> None:
    trainer = Trainer(recipe(learning_rate=2e-3), images, CPU)
    losses = [float(trainer.step(0.0)["rec_loss"]) for _ in range(30)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_critics_learn_only_in_their_time(images: MemoryImages) -> None:
    trainer = Trainer(recipe(warm_up=0.5, critic_head_start=0.2), images, CPU)
    assert set(trainer.step(0.0)) == {"rec_loss"}
    assert set(trainer.step(0.35)) == {"rec_loss", "image_critic_loss", "latent_critic_loss"}
    losses = {"rec_loss", "image_critic_loss", "latent_critic_loss", "encoder_loss", "generator_loss"}
    assert set(trainer.step(0.5)) == losses


def test_lazy_penalty_comes_every_kth_step_and_k_times_as_strong(images: MemoryImages) -> None:
    """Over k steps of a critic that stays as it is, the gradients add up to those of every step."""
    gradients = []
    for every in (1, 4):
        trainer = Trainer(
            recipe(gradient_penalty_every=every, critic_learning_rate=1e-12, drift=0.0), images, CPU
        )
        real, fake = trainer._images()[0], trainer._images()[0].flip(3)
        critic = trainer.networks["image_critic"]
        total = [torch.zeros_like(p) for p in critic.parameters()]
        for step in range(4):
            trainer.random.manual_seed(7)  # the same mixing each time
            trainer._update_critic("image_critic", real, fake, penalize=step % every == 0)
            for t, p in zip(total, critic.parameters(), strict=True):
                t += p.grad if p.grad is not None else 0.0
        gradients.append(torch.cat([t.flatten() for t in total]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-2, atol=1e-2)


def test_sampler_shows_every_image_once_an_epoch() -> None:
    sampler = Sampler(10, torch.Generator().manual_seed(0))
    drawn = torch.cat([sampler.take(4) for _ in range(5)])
    assert sorted(drawn[:10].tolist()) == list(range(10))
    assert sorted(drawn[10:].tolist()) == list(range(10))


def test_cached_features_equal_computed_ones(images: MemoryImages) -> None:
    trainer = Trainer(recipe(), images, CPU)
    assert trainer._features is not None
    indices = torch.arange(5)
    cached = trainer.similarity.standardize([f[indices] for f in trainer._features])
    computed = trainer.similarity.prepare(images.batch(indices))
    torch.testing.assert_close(cached, computed, rtol=1e-4, atol=1e-4)


def test_a_loss_that_is_not_finite_is_reported() -> None:
    with pytest.raises(PadError, match="step 7: rec_loss is nan; the last good checkpoint is kept"):
        check_losses({"rec_loss": torch.tensor(float("nan"))}, 7)


def test_a_generator_and_quick_views_are_trained_together_on_all_images(boots: Path) -> None:
    detector = pad.fit(str(boots), recipe(steps=2, views=["generator", "whole"], view_size=64))
    assert detector.views == ("generator", "whole")
    assert detector.trained_on is not None
    # Nothing that either was fitted on calibrates later.
    assert detector.trained_among(sorted(boots.glob("*.png"))).all()
