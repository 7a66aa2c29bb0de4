"""Training: one step of the method, and everything a step needs to go on exactly where it stopped.

Per step (arXiv:1909.05904, section 3): `n_critic` updates of the critics D_x and D_z, then one of E and G:

    G follows grad L_G + w_G grad L_rec,    E follows grad L_E + w_E grad L_rec
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pad import distributed
from pad.config import Config
from pad.devices import autocast, pick_precision, to_device
from pad.errors import PadError
from pad.images.variation import vary
from pad.learning.balancing import GradientNormalizer
from pad.learning.images import CACHE_BYTES, Images
from pad.learning.losses import adversarial_loss, critic_loss, gradient_penalty
from pad.networks import build_networks
from pad.similarity.base import Similarity
from pad.similarity.build import build_similarity


class Sampler:
    """An endless shuffled stream of indices below n; each epoch in a new order."""

    def __init__(self, n: int, generator: torch.Generator) -> None:
        self.n, self.generator = n, generator
        self.queue = torch.empty(0, dtype=torch.int64)

    def take(self, count: int) -> Tensor:
        while len(self.queue) < count:
            self.queue = torch.cat([self.queue, torch.randperm(self.n, generator=self.generator)])
        taken, self.queue = self.queue[:count], self.queue[count:]
        return taken


class Trainer:
    """The networks of a recipe, their optimizers, and `step()`.

    Args:
        config: the recipe.
        images: normal images to train on.
        device: where to train.
        statistics_images: images that mu and sigma of the perceptual features come from; default `images`.
        similarity: one whose mu and sigma to keep (fine-tuning), instead of new ones from images.

    Raises:
        PadError: widths that do not fit the sizes, a backbone that cannot be had, or a batch that the
            processes cannot share.
    """

    def __init__(
        self,
        config: Config,
        images: Images,
        device: torch.device,
        statistics_images: Images | None = None,
        similarity: Similarity | None = None,
    ) -> None:
        if config.batch_size % distributed.world():
            raise PadError(
                f"setting 'batch_size': {config.batch_size} images cannot be shared by {distributed.world()} "
                "processes"
            )
        self.config, self.images, self.device = config, images, device
        self.dtype = pick_precision(config.precision, device)
        self.random = torch.Generator().manual_seed(config.seed)
        with torch.random.fork_rng(devices=[]):  # weights are drawn from the process's own numbers: put back
            torch.default_generator.manual_seed(config.seed)
            networks = build_networks(config)
        self.networks = to_device(networks, device)
        self.averaged = nn.ModuleDict(
            {name: copy.deepcopy(self.networks[name]) for name in ("encoder", "generator")}
        ).requires_grad_(False)
        self.averaged.eval()
        self.similarity = build_similarity(config).to(device)
        self.similarity.cast(self.dtype)
        self._features: list[Tensor] | None = None
        if similarity is not None:
            self.similarity.take_statistics(similarity)
        elif self.similarity.keeps_features:
            self._fit_similarity(statistics_images)
        self.sampler = Sampler(len(images), self.random)
        encoder, generator = self.networks["encoder"], self.networks["generator"]
        self.optimizers = {
            "networks": self._adam([*encoder.parameters(), *generator.parameters()], config.learning_rate),
            "image_critic": self._adam(
                self.networks["image_critic"].parameters(), config.critic_learning_rate
            ),
            "latent_critic": self._adam(
                self.networks["latent_critic"].parameters(), config.critic_learning_rate
            ),
        }
        self.balancers = {
            name: GradientNormalizer(config.balance_target) for name in ("encoder", "generator")
        }
        self.steps_done = 0
        self.critic_steps_done = 0
        self.compiled = (
            {n: torch.compile(m) for n, m in self.networks.items()} if config.compile else dict(self.networks)
        )

    # One step

    def step(self, progress: float) -> dict[str, Tensor]:
        """One update of everything. `progress` in [0, 1) is the share of the training done, for the schedule.
        Returns the losses, scalars on the device, unchecked."""
        config = self.config
        self._set_learning_rates(progress)
        losses: dict[str, Tensor] = {}
        if progress >= config.warm_up - config.critic_head_start:
            for _ in range(config.n_critic):
                losses.update(self._critic_step())
        losses.update(self._encoder_generator_step(adversarial=progress >= config.warm_up))
        self.steps_done += 1
        self._average()
        distributed.average(list(losses.values()))
        return losses

    def _critic_step(self) -> dict[str, Tensor]:
        x, _ = self._images()
        z = self._prior(len(x))
        penalize = self.critic_steps_done % self.config.gradient_penalty_every == 0
        losses = {}
        if self.config.latent_critic:
            with torch.no_grad(), self._autocast():
                fake_z = self.compiled["encoder"](x).float()
            losses["latent_critic_loss"] = self._update_critic("latent_critic", z, fake_z, penalize)
        if self.config.image_critic:
            with torch.no_grad(), self._autocast():
                fake_x = self.compiled["generator"](z).float()
            losses["image_critic_loss"] = self._update_critic("image_critic", x, fake_x, penalize)
        self.critic_steps_done += 1
        return losses

    def _update_critic(self, name: str, real: Tensor, fake: Tensor, penalize: bool) -> Tensor:
        config, network, critic = self.config, self.networks[name], self.compiled[name]
        network.requires_grad_(True)
        with self._autocast():
            real_criticism, fake_criticism = critic(real).float(), critic(fake).float()
            loss = critic_loss(real_criticism, fake_criticism, config.drift)
            if penalize and config.gradient_penalty:
                # A lazy penalty: every k-th step, k times as strong (Karras et al., arXiv:1912.04958).
                strength = config.gradient_penalty * config.gradient_penalty_every
                loss = loss + strength * gradient_penalty(network, real, fake, self.random)
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        distributed.average([p.grad for p in network.parameters()])
        optimizer.step()
        network.requires_grad_(False)
        return (real_criticism.mean() - fake_criticism.mean()).detach()

    def _encoder_generator_step(self, adversarial: bool) -> dict[str, Tensor]:
        encoder, generator = self.networks["encoder"], self.networks["generator"]
        theta_e, theta_g = list(encoder.parameters()), list(generator.parameters())
        x, reference = self._images(with_reference=True)
        with self._autocast():
            z_x = self.compiled["encoder"](x)
            rec_loss = self.similarity.compare(reference, self.compiled["generator"](z_x).float()).mean()
            losses = {"rec_loss": rec_loss}
            if adversarial and self.config.latent_critic:
                losses["encoder_loss"] = adversarial_loss(self.compiled["latent_critic"](z_x.float()).float())
            if adversarial and self.config.image_critic:
                fake_x = self.compiled["generator"](self._prior(len(x)))
                losses["generator_loss"] = adversarial_loss(
                    self.compiled["image_critic"](fake_x.float()).float()
                )
        adv_e = adv_g = None
        if "encoder_loss" in losses:
            adv_e = torch.autograd.grad(losses["encoder_loss"], theta_e, retain_graph=True)
        if "generator_loss" in losses:
            adv_g = torch.autograd.grad(losses["generator_loss"], theta_g)
        rec = torch.autograd.grad(rec_loss, [*theta_e, *theta_g])
        # autograd.grad passes by the hooks of torch's own wrapper, and the balance needs them one by one.
        distributed.average([*(adv_e or ()), *(adv_g or ()), *rec])
        self._follow("encoder", theta_e, adv_e, rec[: len(theta_e)])
        self._follow("generator", theta_g, adv_g, rec[len(theta_e) :])
        self.optimizers["networks"].step()
        return {key: value.detach() for key, value in losses.items()}

    def _follow(
        self,
        name: str,
        theta: Sequence[Tensor],
        adversarial: Sequence[Tensor] | None,
        rec: Sequence[Tensor],
    ) -> None:
        """theta.grad along adversarial + w * reconstruction.

        It is divided by w: to Adam only the direction matters, and its running moments, which know the
        reconstruction gradient from a warm-up, meet no jump when the adversarial one joins.
        """
        if adversarial is None:
            for p, g_rec in zip(theta, rec, strict=True):
                p.grad = g_rec
            return
        if self.config.balancing != "fixed" and self.steps_done % self.config.balance_every == 0:
            layers = [i for i, p in enumerate(theta) if p.dim() > 1]
            self.balancers[name].update([adversarial[i] for i in layers], [rec[i] for i in layers])
        weight = self.weights[name]
        for p, g_adv, g_rec in zip(theta, adversarial, rec, strict=True):
            p.grad = g_adv / weight + g_rec

    @property
    def weights(self) -> dict[str, float]:
        """w_E and w_G by the name of the network."""
        if self.config.balancing == "fixed":
            return {"encoder": self.config.encoder_weight, "generator": self.config.generator_weight}
        return {name: balancer.weight for name, balancer in self.balancers.items()}

    # What a step needs

    def _prior(self, n: int) -> Tensor:
        r = self.config.latent_resolution
        z = torch.randn(n * distributed.world(), self.config.latent_dim, r, r, generator=self.random)
        return distributed.share(z).to(self.device)

    def _images(self, with_reference: bool = False) -> tuple[Tensor, Any]:
        """The next batch, and what the similarity needs of it (cached features where there are)."""
        whole = self.sampler.take(self.config.batch_size)
        indices = distributed.share(whole)
        if self._augmenting:  # each image in random numbers of its own, which come one after the other
            x = distributed.share(self._augment(self.images.batch(whole))).to(self.device)
        else:
            x = self.images.batch(indices).to(self.device)
        if not with_reference:
            return x, None
        with torch.no_grad(), self._autocast():
            if self._features is None:
                return x, self.similarity.prepare(x)
            return x, self.similarity.standardize([f[indices].to(self.device) for f in self._features])

    @property
    def _augmenting(self) -> bool:
        return self.config.augment_shift > 0 or self.config.augment_flip or bool(self.config.tolerate)

    def _augment(self, x: Tensor) -> Tensor:
        if self.config.augment_flip:
            flip = torch.rand(len(x), generator=self.random) < 0.5
            x = torch.where(flip[:, None, None, None], x.flip(3), x)
        if shift := self.config.augment_shift:
            size = x.shape[-1]
            padded = F.pad(x, (shift,) * 4, mode="replicate")
            offsets = torch.randint(0, 2 * shift + 1, (len(x), 2), generator=self.random).tolist()
            x = torch.stack(
                [p[:, i : i + size, j : j + size] for p, (i, j) in zip(padded, offsets, strict=True)]
            )
        return vary(x, self.config.tolerate, self.random)

    def _fit_similarity(self, statistics_images: Images | None) -> None:
        """mu and sigma; in the same pass the features of the training images are kept, if they fit."""

        def features(images: Images, keep: bool) -> Iterator[list[Tensor]]:
            for indices in torch.arange(len(images)).split(64):
                with torch.no_grad():
                    batch = self.similarity.features(images.batch(indices).to(self.device))
                if keep and indices[0] == 0:
                    self._features = self._room_for(batch, len(images))
                if keep and self._features is not None:
                    for kept, f in zip(self._features, batch, strict=True):
                        kept[indices] = f
                yield batch

        self.similarity.fit(features(statistics_images or self.images, keep=statistics_images is None))
        if statistics_images is not None and not self._augmenting:
            for _ in features(self.images, keep=True):
                pass

    def _room_for(self, batch: list[Tensor], n: int) -> list[Tensor] | None:
        """Empty tensors for the features of n images; None if they do not fit or change with each drawing."""
        size = sum(f[0].numel() * f.element_size() for f in batch) * n
        if self._augmenting or size > CACHE_BYTES:
            return None
        return [torch.empty(n, *f.shape[1:], dtype=f.dtype, device=f.device) for f in batch]

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.device, self.dtype)

    def _adam(self, parameters: Any, rate: float) -> torch.optim.Adam:
        config = self.config
        return torch.optim.Adam(parameters, rate, config.betas, weight_decay=config.weight_decay)

    def _set_learning_rates(self, progress: float) -> None:
        factor = 0.5 * (1 + math.cos(math.pi * progress)) if self.config.schedule == "cosine" else 1.0
        for name, optimizer in self.optimizers.items():
            networks = name == "networks"
            rate = self.config.learning_rate if networks else self.config.critic_learning_rate
            for group in optimizer.param_groups:
                group["lr"] = rate * factor

    @torch.no_grad()
    def _average(self) -> None:
        """The exponential average of the weights of E and G; it starts short, so that it forgets the
        untrained ones."""
        decay = min(self.config.ema, (1 + self.steps_done) / (10 + self.steps_done))
        for name, average in self.averaged.items():
            source = self.networks[name].state_dict()
            for key, value in average.state_dict().items():
                if value.is_floating_point():
                    value.lerp_(source[key], 1 - decay)
                else:
                    value.copy_(source[key])

    # State

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on bit for bit: plain tensors and numbers."""
        return {
            "networks": self.networks.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "balancers": {name: b.state_dict() for name, b in self.balancers.items()},
            "random": self.random.get_state(),
            "queue": self.sampler.queue.clone(),
            "steps_done": self.steps_done,
            "critic_steps_done": self.critic_steps_done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.networks.load_state_dict(state["networks"])
        self.averaged.load_state_dict(state["averaged"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, balancer in self.balancers.items():
            balancer.load_state_dict(state["balancers"][name])
        self.random.set_state(state["random"].cpu())
        self.sampler.queue = state["queue"].cpu()
        self.steps_done = int(state["steps_done"])
        self.critic_steps_done = int(state["critic_steps_done"])


def check_losses(losses: dict[str, Tensor], step: int) -> dict[str, float]:
    """The losses as numbers. Raises PadError if one is no longer finite."""
    numbers = {name: float(value) for name, value in losses.items()}
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise diverged(step, f"{name} is {value}")
    return numbers


def check_weights(trainer: Trainer) -> None:
    """Raises PadError if a weight is no longer finite: losses show it one step later."""
    for name, weight in [*trainer.networks.state_dict().items(), *trainer.averaged.state_dict().items()]:
        if not bool(torch.isfinite(weight).all()):
            raise diverged(trainer.steps_done, f"the weight {name} is not finite")


def diverged(step: int, what: str) -> PadError:
    """The error of a run whose numbers have left the finite."""
    return PadError(
        f"training stopped at step {step}: {what}; the last good checkpoint is kept; "
        "try a lower learning_rate or critic_learning_rate"
    )
