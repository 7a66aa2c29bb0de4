"""The recipe of a model: every setting, its default, its unit, and the named recipes.

A recipe is flat, so that `--set key=value` reaches all of it. It travels with the model in `config.yaml`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from pad.errors import PadError, did_you_mean, one_line, shown
from pad.tolerance import parse_tolerance

SIMILARITIES = ("relative-perceptual-l1", "l1", "l2", "ssim", "lpips")
BACKBONES = ("vgg16-st", "vgg16", "vgg19")
FPR = 0.05  # the false-alarm rate on normal images, where no other is asked for
BATCH_SIZE = 128  # images scored at a time, divided among the lanes of a CPU (pad/devices.py)
MOST_LATENT = 1e6  # of one number of a latent; they lie near N(0, 1)
MOST_BATCH = 1 << 14  # images in a batch: more is a slip, or means to exhaust the memory
VIEWS = ("generator", "whole", "middle", "parts")
LOGGERS = ("tensorboard", "mlflow", "wandb")
MOST_KEPT = 1024  # normal images that a model keeps
MOST_STRANGERS = 0.4  # of the images: beyond, nobody can tell which of them are the strangers
MOST_TILE = 4096  # side of a tile, in pixels of the source
MOST_SEEN = 1024  # side of the images that a backbone sees, in pixels
SCORING_SETTINGS = (  # they touch the score alone: training is the same whatever they are
    "feature_weights",
    "feature_channels",
    "residual_components",
    "prior_mass",
    "refine_steps",
    "refine_rate",
)


def coarsest_resolution(size: int, latent_resolution: int = 1) -> int:
    """Side of the coarsest feature map of a network for images of `size`: `size` halved until it is 4 to 7,
    or the latent's own resolution where that is finer. All sides are in pixels."""
    while size >= 8:
        size //= 2
    return max(size, latent_resolution)


def feature_resolutions(size: int, latent_resolution: int = 1) -> list[int]:
    """Sides of a network's feature maps in pixels: the coarsest, and its doubles up to `size`."""
    start = coarsest_resolution(size, latent_resolution)
    return [start << i for i in range((size // start).bit_length())]


@dataclass(frozen=True)
class Config:
    """All settings of a recipe. The defaults are the quick recipe at 32x32 grey; `zoo/configs/` holds the
    named ones: `folder`, which looks at the images, and the paper's own."""

    # Images
    size: int = 32  # side of the square images that the networks see, in pixels
    channels: int = 1  # 1 (grey) or 3 (colour)
    crop: int | None = None  # side of the centre crop taken before resizing, in pixels of the source
    fit: str = "crop"  # a picture that is not square: "crop" its centre, or "stretch" it

    input_size: int | None = None  # side at which pictures are read, where views want more than `size`
    tile: int | None = (
        None  # side of the overlapping tiles that pictures are cut into, in pixels of the source
    )

    # Views: ways of looking at an image, each a score of its own; several are fused (pad/judging/fusion.py)
    views: tuple[str, ...] = ("generator",)  # of "generator", "whole", "middle", "parts"
    view_backbone: str = "efficientnet-lite2"  # or timm:MODEL
    view_backbone_weights: str | None = None  # a local file instead of a download (timm:MODEL)
    view_size: int = 160  # side of the images that the quick views see, in pixels
    keep_normals: int = 0  # small normal images kept in the model, to show the nearest one; 0: none

    # Networks (Table 2 of the paper's supplement): channels from the input of each network to its output
    latent_dim: int = 32
    latent_resolution: int = 1  # the latent is (latent_dim, r, r)
    generator_channels: tuple[int, ...] = (32, 32, 32, 16)
    encoder_channels: tuple[int, ...] = (32, 32, 32, 32)
    critic_channels: tuple[int, ...] = (32, 32, 32, 32)
    latent_critic_channels: tuple[int, ...] = (128, 128)
    latent_norm: bool = True  # standardize E(x) by running statistics, so that it starts near the prior

    # Similarity: the loss and the score
    similarity: str = "relative-perceptual-l1"
    backbone: str = "vgg16-st"
    backbone_weights: str | None = None  # a local file instead of a download (vgg16, vgg19)
    layers: Mapping[str, float] = field(default_factory=lambda: {"relu3_1": 1.0})  # layer: weight
    standardize: str = "sigma"  # divide features by "sigma" (the paper) or "variance" (its public code)
    sigma_floor: float = 0.3  # least sigma of a channel, as a share of its root mean square over channels
    backbone_scale: float = 0.75  # images are resized by this, to a multiple of 4 pixels, for the backbone
    statistics: str = "normal"  # where mu and sigma come from: "normal" training images, or a folder

    # Training
    steps: int = 1000  # of E and G
    batch_size: int = 32
    learning_rate: float = 2e-3  # of E and G
    critic_learning_rate: float = 2e-3
    betas: tuple[float, float] = (0.5, 0.99)
    weight_decay: float = 1e-8
    schedule: str = "cosine"  # of both learning rates: "cosine" to zero, or "constant"
    ema: float = 0.99  # decay of the averaged weights that score, per step; 0: no averaging
    n_critic: int = 1  # critic steps before each E/G step
    gradient_penalty: float = 10.0  # lambda
    gradient_penalty_every: int = 4  # lazy penalty: on every k-th critic step, k times as strong
    drift: float = 1e-3  # epsilon
    image_critic: bool = True  # train D_x and follow its gradient in G
    latent_critic: bool = True  # train D_z and follow its gradient in E
    warm_up: float = 0.0  # share of the training in which E and G follow reconstruction alone
    critic_head_start: float = 0.0  # share of the training, at the end of a warm-up, in which critics learn
    balancing: str = "gradient-normalizing"  # or "fixed"
    balance_every: int = 5  # steps between measurements of the gradients
    balance_target: float = 10.0  # wanted ratio of reconstruction to adversarial gradient; the paper: 1
    generator_weight: float = 1.0  # w_G when balancing is "fixed"
    encoder_weight: float = 1.0  # w_E when balancing is "fixed"
    augment_shift: int = 0  # random shifts of training images, up to so many pixels
    augment_flip: bool = False  # random left-right flips of training images
    precision: str = "auto"  # "float32", "bfloat16", or "auto": bfloat16 where the device gains
    compile: bool = False  # torch.compile the networks

    # What new normal images may differ by: they are fitted on and calibrated for in random variations
    tolerate: Mapping[str, float] = field(default_factory=dict)  # "brightness=0.2,flip" (pad/tolerance.py)

    contamination: float | None = None  # share of the images that do not belong and are not to be learnt by
    # the quick views; 0: none; null: a group that stands apart, if there is one (pad/learning/strangers.py)

    # Scoring and calibration
    feature_weights: bool = True  # weigh features by how well normal images are reconstructed there
    feature_channels: float = 0.5  # share of the deepest layer's channels that count: those of largest sigma
    residual_components: int = 128  # principal components of normal residuals that do not count; 0: none
    prior_mass: float = 0.999  # E(x) is drawn into the ball that holds this share of the prior; 1: never
    refine_steps: int = 0  # gradient steps on z from E(x) towards the closest generated image
    refine_rate: float = 0.05  # their step size, in standard deviations of the prior
    calibration_fraction: float = 0.2  # of the normal images, never trained on

    # Bookkeeping
    seed: int = 0
    log_every: int = 50  # steps
    sample_every: int = 500  # steps between sample grids; 0: none
    checkpoint_every: int = 500  # steps
    loggers: tuple[str, ...] = ()  # of "tensorboard", "mlflow", "wandb", told of a training besides its log
    # (the extras of these names; pad/learning/loggers.py)

    def __post_init__(self) -> None:
        check(self)

    @property
    def input_side(self) -> int:
        """The side of the square images that a detector takes, in pixels."""
        return self.input_size or self.size

    @property
    def has_generator(self) -> bool:
        """Whether there is an encoder and a generator: they are asked for, and trained. They do not look at
        tiles."""
        return "generator" in self.views and self.steps > 0 and self.tile is None

    @property
    def quick_views(self) -> tuple[str, ...]:
        """The views that are fitted in seconds."""
        return tuple(view for view in self.views if view != "generator")

    @property
    def model_views(self) -> tuple[str, ...]:
        """All views of a model, the generator's first."""
        return (("generator",) if self.has_generator else ()) + self.quick_views

    def replace(self, **changes: Any) -> Config:
        """A copy with some values changed. Raises PadError for unknown keys or unusable values."""
        return from_mapping({**to_mapping(self), **changes})


def fitting_batch(config: Config, wanted: int) -> int:
    """How many images at a time, of `wanted`, a processor scores: together they have no more pixels than 128
    of 256x256. A recipe may ask for sides at which more images would take tens of gigabytes."""
    side = max(config.input_side, config.size)
    if config.has_generator:
        side = max(side, round(config.backbone_scale * config.size))
    if config.quick_views:
        side = max(side, config.view_size)
    return max(1, min(wanted, BATCH_SIZE * 256**2 // side**2))


def to_mapping(config: Config) -> dict[str, Any]:
    """The recipe as plain YAML types, in the order of the class."""
    plain = dataclasses.asdict(config)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}


def from_mapping(values: Mapping[str, Any], where: str = "the recipe") -> Config:
    """A Config from plain types. Raises PadError naming the key for unknown keys or wrong types."""
    hints = get_type_hints(Config)
    values = _with_loggers(values, where)
    unknown = [key for key in values if key not in hints]
    if unknown:
        key = unknown[0]
        hint = did_you_mean(key, hints) if isinstance(key, str) else ""
        raise PadError(f"{where}: unknown setting {shown(key)}{hint}")
    plain = {
        key: _convert(key, value, str(hints[key]), where)
        for key, value in values.items()
        if key != "tolerate"
    }
    if "tolerate" in values:
        plain["tolerate"] = parse_tolerance(values["tolerate"], where)
    return Config(**plain)


def _with_loggers(values: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Recipes of models and runs that were made when TensorBoard was the only logger, as they read now."""
    if "tensorboard" not in values:
        return values
    wanted = _convert("tensorboard", values["tensorboard"], "<class 'bool'>", where)
    others = {key: value for key, value in values.items() if key != "tensorboard"}
    return others | {"loggers": ["tensorboard"]} if wanted else others


def _convert(key: str, value: Any, hint: str, where: str) -> Any:
    """`value` as the type that the annotation `hint` names; int is accepted where float is meant."""
    fail = PadError(
        f"{where}: setting '{key}' cannot be {shown(value)}; it takes {_EXPECTED.get(hint, 'text')}"
    )
    if value is None:
        if "None" in hint:
            return None
        raise fail
    if "bool" in hint:
        if isinstance(value, bool):
            return value
        raise fail
    if "tuple" in hint:
        items = value if isinstance(value, list | tuple) else [value]
        if "str" in hint:
            return tuple(str(item) for item in items)
        convert = _whole if "int" in hint else _number
        return tuple(convert(item, fail) for item in items)
    if "Mapping" in hint:
        if isinstance(value, str):
            return {name.strip(): 1.0 for name in value.split(",")}
        if isinstance(value, list | tuple):
            return {str(name): 1.0 for name in value}
        if isinstance(value, Mapping):
            return {str(name): _number(weight, fail) for name, weight in value.items()}
        raise fail
    if "float" in hint:
        return _number(value, fail)
    if "int" in hint:
        return _whole(value, fail)
    if isinstance(value, bytes | list | dict | set | tuple):
        raise fail
    return str(value)


def _whole(value: Any, fail: PadError) -> int:
    """A whole number of 64 bits, also if it was written as 3.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise fail
    return value


def _number(value: Any, fail: PadError) -> float:
    """A finite number."""
    try:
        # YAML 1.1 reads 1e-4 as text.
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        raise fail from None
    if not math.isfinite(number):
        raise fail
    return number


_EXPECTED = {
    "<class 'int'>": "a whole number",
    "int | None": "a whole number or null",
    "<class 'float'>": "a number",
    "float | None": "a number or null",
    "<class 'bool'>": "true or false",
    "tuple[int, ...]": "a list of whole numbers, such as [32, 32, 32, 32]",
    "tuple[str, ...]": "a list of names, such as [whole, parts]",
    "tuple[float, float]": "a pair of numbers, such as [0.5, 0.99]",
    "collections.abc.Mapping[str, float]": "a layer name, a list of them, or layer: weight",
}


def _is_doubled(side: int, start: int) -> bool:
    """Whether doubling `start` leads to `side`."""
    return side % start == 0 and (side // start).bit_count() == 1


def check(config: Config) -> None:
    """Raises PadError for a value outside its range, naming what was given and what fits."""

    def need(fits: bool, key: str, what: str) -> None:
        if not fits:
            raise PadError(f"setting '{key}' cannot be {shown(getattr(config, key))}; it takes {what}")

    size, r = config.size, config.latent_resolution
    coarsest = coarsest_resolution(size)
    need(16 <= size <= 256 and _is_doubled(size, coarsest), "size",
         "16, 20, 24 or 28 pixels, or one of these doubled up to 256")  # fmt: skip
    need(config.channels in (1, 3), "channels", "1 (grey) or 3 (colour)")
    need(config.fit in ("crop", "stretch"), "fit", "'crop' or 'stretch'")
    need(config.crop is None or config.crop >= 1, "crop", "null or at least 1 pixel")
    need(r >= 1 and (coarsest % r == 0 or (r <= size // 4 and _is_doubled(r, coarsest))), "latent_resolution",
         f"a divisor of {coarsest}, the coarsest resolution of size {size}, or its double up to a quarter of "
         "the size")  # fmt: skip
    for key in ("gradient_penalty_every", "balance_every", "log_every", "checkpoint_every"):
        need(getattr(config, key) >= 1, key, "a whole number of at least 1")
    # What lies above these is a slip, or the wish of a stranger's model to take all time or memory.
    for key, most in (
        ("latent_dim", 1 << 14),
        ("batch_size", MOST_BATCH),
        ("n_critic", 1000),
    ):
        need(1 <= getattr(config, key) <= most, key, f"a whole number of at least 1, at most {most:,}")
    least_steps = 0 if config.quick_views else 1
    need(least_steps <= config.steps <= 10**9, "steps",
         f"a whole number of at least {least_steps}, at most {10**9:,}")  # fmt: skip
    distinct = set(config.views) <= set(VIEWS) and len(set(config.views)) == len(config.views)
    need(bool(config.views) and distinct, "views", f"a list of {', '.join(VIEWS)}")
    distinct = set(config.loggers) <= set(LOGGERS) and len(set(config.loggers)) == len(config.loggers)
    need(distinct, "loggers", f"a list of {', '.join(LOGGERS)}")
    need(32 <= config.view_size <= MOST_SEEN, "view_size", f"a side from 32 to {MOST_SEEN} pixels")
    need(config.tile is None or (32 <= config.tile <= MOST_TILE and bool(config.quick_views)), "tile",
         f"null, or, with views besides the generator, a side from 32 to {MOST_TILE:,} pixels")  # fmt: skip
    need(config.contamination is None or 0 <= config.contamination <= MOST_STRANGERS, "contamination",
         f"null or a share from 0 to {MOST_STRANGERS:g}")  # fmt: skip
    need(not config.contamination or (config.tile is None and bool(config.quick_views)), "contamination",
         "null or 0, where there are tiles or no views besides the generator")  # fmt: skip
    need(config.input_size is None or size <= config.input_size <= MOST_SEEN, "input_size",
         f"null, or a side from {size} to {MOST_SEEN} pixels")  # fmt: skip
    need(0 <= config.keep_normals <= MOST_KEPT, "keep_normals", f"a whole number from 0 to {MOST_KEPT:,}")
    for key, most in (("refine_steps", 1000), ("residual_components", 1 << 16), ("augment_shift", size),
                      ("seed", 2**63 - 2)):  # fmt: skip
        need(0 <= getattr(config, key) <= most, key, f"a whole number from 0 to {most:,}")
    for key in ("generator_channels", "encoder_channels", "critic_channels", "latent_critic_channels"):
        widths = getattr(config, key)
        need(bool(widths) and all(1 <= c <= 4096 for c in widths), key, "a list of widths from 1 to 4096")
    for key in ("learning_rate", "critic_learning_rate"):
        need(0 < getattr(config, key) <= 1e30, key, "a number above 0, up to 1e30")
    for key in ("balance_target", "refine_rate", "generator_weight", "encoder_weight"):
        need(0 < getattr(config, key) <= 1e9, key, "a number above 0, up to 1e9")
    for key in ("weight_decay", "sigma_floor", "gradient_penalty", "drift"):
        need(0 <= getattr(config, key) <= 1e9, key, "a number from 0 to 1e9")
    need(config.sample_every >= 0, "sample_every", "0 or more")
    for key in ("warm_up", "critic_head_start"):
        need(0 <= getattr(config, key) <= 1, key, "a share of the training from 0 to 1")
    need(0 < config.prior_mass <= 1, "prior_mass", "a share above 0, up to 1")
    need(0 < config.feature_channels <= 1, "feature_channels", "a share above 0, up to 1")
    need(0.25 <= config.backbone_scale <= 8, "backbone_scale", "a factor from 0.25 to 8")
    need(
        config.backbone_scale * size <= MOST_SEEN,
        "backbone_scale",
        f"at most {MOST_SEEN} pixels over the size",
    )
    need(0 <= config.ema < 1, "ema", "a decay from 0 to below 1")
    need(len(config.betas) == 2 and all(0 <= b < 1 for b in config.betas), "betas", "two numbers below 1")
    need(0 < config.calibration_fraction < 1, "calibration_fraction", "a share between 0 and 1")
    parse_tolerance(config.tolerate, "the recipe")
    need(config.schedule in ("cosine", "constant"), "schedule", "'cosine' or 'constant'")
    need(config.precision in ("auto", "float32", "bfloat16"), "precision", "auto, float32 or bfloat16")
    need(config.balancing in ("gradient-normalizing", "fixed"), "balancing",
         "'gradient-normalizing' or 'fixed'")  # fmt: skip
    need(config.standardize in ("sigma", "variance"), "standardize", "'sigma' or 'variance'")
    need(bool(config.layers) and all(0 < w <= 1e9 for w in config.layers.values()), "layers",
         "layer: weight, each above 0, up to 1e9")  # fmt: skip
    for key, known in (("similarity", SIMILARITIES), ("backbone", BACKBONES)):
        value = getattr(config, key)
        if value not in known:
            hint = did_you_mean(value, known)
            raise PadError(f"setting '{key}' cannot be {shown(value)}; it takes {', '.join(known)}{hint}")


def zoo_folder() -> Path:
    """Where the zoo lies, its models and its recipes: in the installed package, or in the source tree."""
    inside = Path(__file__).parent / "zoo"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "zoo"


def config_folder() -> Path:
    """Where the named recipes lie."""
    return zoo_folder() / "configs"


def recipe_names() -> list[str]:
    """The named recipes, sorted."""
    return sorted(path.stem for path in config_folder().glob("*.yaml"))


def load_recipe(name_or_file: str) -> dict[str, Any]:
    """The settings of a named recipe or of a YAML file, unchecked but for its form.

    Raises PadError if there is no such recipe or file, or if it is not a YAML mapping.
    """
    path = Path(name_or_file)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        if name_or_file not in recipe_names():
            hint = did_you_mean(name_or_file, recipe_names()) or f"; known: {', '.join(recipe_names())}"
            raise PadError(f"--config: no recipe named '{name_or_file}' and no such file{hint}")
        path = config_folder() / f"{name_or_file}.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PadError(f"--config: cannot read {path}: {error.strerror}") from None
    except Exception as error:  # YAML's library raises far more than its own
        raise PadError(f"--config: {path} is not YAML: {one_line(str(error))}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise PadError(f"--config: {path} must hold 'setting: value' lines")
    return values


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`["steps=10", "layers={relu3_3: 1}"]` as a mapping; values are YAML.

    Raises PadError for a word without `=` or a value that is not YAML.
    """
    values: dict[str, Any] = {}
    for word in assignments:
        key, equals, text = word.partition("=")
        if not equals:
            raise PadError(f"--set takes key=value, not '{word}'")
        try:
            values[key.strip()] = yaml.safe_load(text)
        except Exception:  # YAML's library raises far more than its own
            raise PadError(f"--set {key}: {shown(text)} is not a value") from None
    return values
