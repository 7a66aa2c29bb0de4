"""What config.yaml and calibration.json may hold: all that is ever read of them is checked, by name."""

from __future__ import annotations

import copy
import datetime
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

import pad
from pad.config import zoo_folder
from pad.errors import PadError
from pad.store.model_folder import read_model
from pad.store.schema import check_calibration, check_config

ZOO = zoo_folder()
BOOT = ZOO / "fashion-mnist" / "ankle-boot"


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return yaml.safe_load((BOOT / "config.yaml").read_text())


@pytest.fixture(scope="module")
def calibration() -> dict[str, Any]:
    return json.loads((BOOT / "calibration.json").read_text())


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one value of nested mappings."""

    def change(tree: dict[str, Any]) -> None:
        for key in path[:-1]:
            tree = tree.setdefault(key, {}) if isinstance(tree, dict) else tree[key]
        tree[path[-1]] = value

    return change


def test_every_model_of_the_zoo_passes() -> None:
    folders = [path.parent for path in ZOO.glob("*/**/config.yaml")]
    assert len(folders) > 10
    for folder in folders:
        values = yaml.safe_load((folder / "config.yaml").read_text())
        recipe = check_config(values, "config.yaml")
        check_calibration(json.loads((folder / "calibration.json").read_text()), recipe, "calibration.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("data", value=[1, 2]), "at `data`"),
        (put("data", value=None), "at `data`"),
        (put("data", "images", value=-1), "at `data.images`"),
        (put("data", "images", value="many"), "at `data.images`"),
        (put("data", "source", value=["a"]), "at `data.source`"),
        (put("training", value="long"), "at `training`"),
        (put("training", "seconds", value="long"), "at `training.seconds`"),
        (put("training", "seconds", value=-1.0), "at `training.seconds`"),
        (put("training", "steps", value=10**30), "training.steps cannot be 1000"),
        (put("training", "hardware", value=3), "at `training.hardware`"),
        (put("training", "finished", value="yes"), "at `training.finished`"),
        (put("training", "weights", value=[1.0]), "at `training.weights`"),
        (put("training", "weights", "encoder", value=float("nan")), "training.weights.encoder cannot be nan"),
        (put("versions", "torch", value=2.1), "at `versions"),
        (put("versions", value=[]), "at `versions`"),
        (put("backbone", value="vgg16-st"), "at `backbone`"),
        (put("backbone", "fingerprint", value=[1]), "at `backbone.fingerprint`"),
        (put("fine_tuning", value={"from": 3, "replay": "x"}), "at `fine_tuning.from`"),
        (put("fine_tuning", value={"from": {}}), "missing required field `replay` at `fine_tuning`"),
        (put("fine_tuning", value=[1]), "at `fine_tuning`"),
        (put("fine_tuning", value={"from": {"source": 1}, "replay": "x"}), "at `fine_tuning.from.source`"),
        (put("more", value=datetime.date(2024, 2, 29)), "more holds a date"),
        (put("more", "when", value=datetime.datetime(2024, 2, 29)), "more.when holds a datetime"),
        (put("more", value=b"\x00"), "more holds a bytes"),
        (put("more", value={1, 2}), "more holds a set"),
        (put("more", value={1: 2}), "more has the key 1"),
        (put("more", value=2**70), "more cannot be 118"),
        (put("more", value=[float("inf")]), "more cannot be inf"),
        (put("more", value="x" * 20_000), "more holds a text of 20,000 characters"),
        (put("\x1b[2J", value=2**70), r"\x1b[2J cannot be"),
        (put("recipe", "steps", value=10**400), "recipe.steps cannot be 1000"),
        (put("recipe", "learning_rate", value=10**400), "recipe.learning_rate cannot be 1000"),
        (put("recipe", "seed", value=-1), "'seed' cannot be -1"),
        (put("recipe", "refine_steps", value=10**6), "'refine_steps' cannot be 1000000"),
        (put("recipe", "layers", value={"relu3_1": True}), "'layers' cannot be"),
        (put("recipe", "layers", value={"relu3_1": 1e300}), "'layers' cannot be"),
        (put("recipe", "betas", value=[None, 1]), "'betas' cannot be"),
        (put("recipe", "fit", value=["crop"]), "'fit' cannot be"),
        (put("recipe", 3, value=1), "recipe has the key 3"),
        (put("recipe", value=[1]), "no 'recipe' mapping"),
        (put("format", value=10**400), "newer pad"),
        (put("format", value=1.0), "no 'format"),
    ],
)
def test_a_config_is_refused_by_name(
    config: dict[str, Any], change: Callable[[dict[str, Any]], None], words: str
) -> None:
    values = copy.deepcopy(config)
    change(values)
    with pytest.raises(PadError) as caught:
        check_config(values, "m/config.yaml")
    text = str(caught.value)
    assert text.startswith("m/config.yaml")
    assert words in text
    assert text.isprintable()
    assert len(text) < 700


def test_what_is_unknown_and_plain_is_kept(config: dict[str, Any]) -> None:
    values = {**config, "later": {"list": [1, 2.5, None, True, "text"], "nested": [[{}]]}}
    assert check_config(values, "config.yaml").size == config["recipe"]["size"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("scores", value=[]), "'scores' is empty"),
        (put("scores", value=[1e39]), "not all finite numbers"),
        (put("scores", value=[10**400]), "not all finite numbers"),
        (put("extra", value=[1]), "'extra' is not a mapping"),
        (put("extra", value=None), "'extra' is not a mapping"),
        (put("extra", "map_scale", value=[0, 1]), "at `map_scale`"),
        (put("extra", "map_scale", value={"low": 2, "high": 1}), "0 <= low < high"),
        (put("extra", "map_scale", value={"low": -1, "high": 1}), "at `map_scale.low`"),
        (put("extra", "map_scale", value={"low": 0}), "missing required field `high`"),
        (put("extra", "map_scale", value={"low": "0", "high": 1}), "at `map_scale.low`"),
        (put("extra", "old_normal", value="guessed"), "at `old_normal`"),
        (put("extra", "old_normal", value="\ud800"), "half a character"),
        (put("extra", "map_scale", value={"\ud800": 1}), "no short text"),
        (put("extra", "view_ranks", value={"whole": [0]}), "the rank of each score"),
        (put("extra", "view_ranks", value={"whole": ["0"]}), "at `view_ranks"),
        (put("extra", "replay", value={}), "list of at most 512 latents"),
        (put("extra", "replay", value=[[]]), "lists of 32 finite numbers"),
        (put("extra", "replay", value=[[0.0] * 31]), "lists of 32 finite numbers"),
        (put("extra", "replay", value=[[1e30] * 32]), "lists of 32 finite numbers"),
        (put("extra", "replay", value=[["0"] * 32]), "lists of 32 finite numbers"),
        (put("extra", "replay", value=[[0.0] * 32] * 513), "list of at most 512 latents"),
        (put("more", value=2**70), "more cannot be"),
        (put("more", value=["\udfff"]), "more holds"),
    ],
)
def test_a_calibration_is_refused_by_name(
    config: dict[str, Any],
    calibration: dict[str, Any],
    change: Callable[[dict[str, Any]], None],
    words: str,
) -> None:
    values = copy.deepcopy(calibration)
    change(values)
    with pytest.raises(PadError) as caught:
        check_calibration(values, check_config(config, ""), "m/calibration.json")
    assert str(caught.value).startswith("m/calibration.json")
    assert words in str(caught.value)


def test_an_empty_replay_is_none(config: dict[str, Any], calibration: dict[str, Any]) -> None:
    for none in ([], None):
        check_calibration({**calibration, "extra": {"replay": none}}, check_config(config, ""), "")


# As files: what YAML itself would make of them ------------------------------------------------------------


def copy_of(tmp_path: Path, config: str | bytes | None = None) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.safetensors", "config.yaml", "calibration.json"):
        (folder / name).write_bytes((BOOT / name).read_bytes())
    if config is not None:
        (folder / "config.yaml").write_bytes(config if isinstance(config, bytes) else config.encode())
    return folder


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("more: 2024-02-29", "holds a date"),
        ("more: 2024-02-30", "not plain YAML"),
        ("more: 1" + ":1" * 100_000, "holds a value of 200,001 characters"),
        ("more: 0x" + "f" * 9_000, "cannot be <int that is too large to show>"),
        ("more: " + "9" * 9_000, "not plain YAML"),
        ("more: [" + "1, " * 100_000 + "]", "holds more than 20,000 values"),
        ("more: " + "[" * 900, "nested too deeply"),
        ("more: !!timestamp x", "not plain YAML"),
        ("more: !!python/name:os.system x", "not plain YAML"),
        ("? [a]\n: 1", "not plain YAML"),
        ("more: .nan", "more cannot be nan"),
    ],
)
def test_yaml_that_is_not_plain_or_takes_long(tmp_path: Path, line: str, words: str) -> None:
    folder = copy_of(tmp_path, (BOOT / "config.yaml").read_text() + line + "\n")
    with pytest.raises(PadError) as caught:
        read_model(folder)
    assert str(caught.value).startswith(f"{folder}/config.yaml")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_stranger_cannot_ask_for_networks_that_are_not_in_the_file(tmp_path: Path) -> None:
    """Networks 4,096 wide would take 7 GB before they are held against the tensors that there are."""
    import resource

    config = yaml.safe_load((BOOT / "config.yaml").read_text())
    for key in ("generator_channels", "encoder_channels", "critic_channels"):
        config["recipe"][key] = [4096] * len(config["recipe"][key])
    folder = copy_of(tmp_path, yaml.safe_dump(config))
    pad.load(BOOT, "cpu")  # all that is imported
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PadError, match="does not fit its config"):
        pad.load(folder, "cpu")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


@pytest.mark.parametrize("key", ["encoder.norm.count", "encoder.norm.variance"])
def test_statistics_of_latents_are_not_negative(key: str, tmp_path: Path) -> None:
    """A count of -1 ended fine-tuning in a division by zero: found by benchmarks/mutate_models.py."""
    folder = shutil.copytree(zoo_folder() / "digits" / "three", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors[key] -= 1 + tensors[key].max()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(PadError, match=f"'{key}' must not be negative"):
        pad.load(folder, "cpu")
