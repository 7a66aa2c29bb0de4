"""Ways in which a model folder may be damaged, or made to do harm; each is a function of the folder and of a
random number generator, and changes the folder in place."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml

from pad.store.model_folder import CALIBRATION, CARD, CONFIG, WEIGHTS

SECRET = "the content of a file outside of the model"
Mutation = Callable[[Path, Random], None]


# Values --------------------------------------------------------------------------------------------------


def nasty(random: Random) -> Any:
    """A value that hardly any field expects."""
    return random.choice(
        [
            None, True, False, 0, 1, -1, 2, 3, 7, 100, 4096, 10**6, 10**9, 2**31, 2**63 - 1, 2**63, 2**70,
            10**400, 0.0, -0.5, 0.5, 1e-300, 1e30, 1e308, -1e308, math.nan, math.inf, -math.inf,
            "", " ", "x", "1", "1e9", "null", "x" * 9_000, "x" * 200_000,
            "\x1b[2J\x07", "a\nb\r", "\u202egnp", "\ud800",
            "../../etc/passwd", "/etc/passwd", "~/.ssh/id_rsa", "file:///etc/passwd", "${HOME}",
            [], {}, [[]], [[[]]], [None], [1, "a"], [1.0] * 5, [0] * 100_000, [[0.0] * 8] * 20_000,
            {"a": 1}, {1: 2}, {"a": {"b": {"c": []}}}, {1, 2}, b"\x00\xff",
            datetime.date(2024, 2, 29), datetime.datetime(2024, 2, 29, 1, 2, 3), deep(40), deep(2_000),
        ]
    )  # fmt: skip


def deep(levels: int) -> Any:
    """Lists in one another."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def near(value: Any, random: Random) -> Any:
    """Something like the value, which a check of types alone lets pass."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return random.choice(
            [
                value + 1,
                value - 1,
                value * 2,
                value * 1000,
                value * 10**6,
                value / 2,
                -value,
                value + 0.5,
                str(value),
            ]
        )
    if isinstance(value, str):
        known = [
            "vgg16",
            "vgg19",
            "lpips",
            "l1",
            "l2",
            "ssim",
            "stretch",
            "crop",
            "bfloat16",
            "fixed",
            "variance",
        ]
        return random.choice([value[:-1], value + "x", value.upper(), [value], {value: 1.0}, *known])
    if isinstance(value, list):
        return random.choice(
            [value[:-1], value * 2, value[::-1], value * 1_000, [value], [_text(v) for v in value[:9]]]
        )
    if isinstance(value, dict):
        return random.choice(
            [list(value), {k.upper(): v for k, v in value.items()}, dict(list(value.items())[1:])]
        )
    return nasty(random)


def _text(value: Any) -> str:
    try:
        return str(value)
    except (RecursionError, ValueError):  # nested too deeply, or too large a number to write
        return "too much"


def places(tree: Any, most: int = 400) -> list[tuple[Any, Any]]:
    """(container, key) of the values of nested lists and mappings; of long lists the first and the last."""
    found: list[tuple[Any, Any]] = []
    todo = [tree]
    while todo and len(found) < most:
        here = todo.pop(0)
        keys = (
            list(here) if isinstance(here, dict) else [*range(min(3, len(here))), len(here) - 1][: len(here)]
        )
        for key in keys:
            found.append((here, key))
            if isinstance(here[key], dict | list):
                todo.append(here[key])
    return found


def swap(tree: Any, random: Random) -> None:
    """Changes one value of the tree, or takes it away, or puts another one beside it."""
    container, key = random.choice(places(tree))
    how = random.random()
    if how < 0.45:
        container[key] = nasty(random)
    elif how < 0.75:
        container[key] = near(container[key], random)
    elif how < 0.85:
        del container[key]
    elif how < 0.95:
        other, place = random.choice(places(tree))
        container[key] = other[place]
    elif isinstance(container, dict):
        container[random.choice(["replay", "extra", "unheard_of", "", "a" * 20_000, "\x1b", 3])] = nasty(
            random
        )
    else:
        container.append(nasty(random))


class _Dumper(yaml.SafeDumper):
    """Without anchors, so that what refuses anchors does not end every trial."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_config(folder: Path, tree: Any, random: Random) -> None:
    try:
        text = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=random.random() < 0.5)
        content = text.encode("utf-8", "surrogatepass")
    except (RecursionError, ValueError):  # nested too deeply, or too large a number to write
        content = b"recipe: " + b"[" * 5_000
    (folder / CONFIG).write_bytes(content)


def config_value(folder: Path, random: Random) -> None:
    tree = yaml.safe_load((folder / CONFIG).read_text("utf-8"))
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        swap(tree, random)
    _write_config(folder, tree, random)


def recipe_value(folder: Path, random: Random) -> None:
    """As above, but of the recipe, by values that come near to good ones."""
    tree = yaml.safe_load((folder / CONFIG).read_text("utf-8"))
    for _ in range(random.choice([1, 1, 2])):
        container, key = random.choice(places(tree["recipe"]))
        container[key] = near(container[key], random)
    _write_config(folder, tree, random)


def calibration_value(folder: Path, random: Random) -> None:
    tree = json.loads((folder / CALIBRATION).read_text("utf-8"))
    for _ in range(random.choice([1, 1, 2])):
        swap(random.choice([tree, tree["extra"], tree["extra"]]) or tree, random)
    try:
        text = json.dumps(tree, default=str)
    except (RecursionError, TypeError, ValueError):
        text = '{"scores": ' + "[" * 100_000
    (folder / CALIBRATION).write_text(text, "utf-8", "surrogatepass")


# Texts and bytes -----------------------------------------------------------------------------------------


def text_lines(folder: Path, random: Random) -> None:
    """Lines of the config doubled, moved, indented, or replaced by YAML that is not plain."""
    path = folder / CONFIG
    lines = path.read_text("utf-8", "replace").splitlines()
    index = random.randrange(len(lines))
    name = lines[index].partition(":")[0]
    lines[index] = random.choice(
        [
            lines[random.randrange(len(lines))], " " + lines[index], "\t" + lines[index], lines[index] * 2,
            f"{name}: !!python/object/apply:os.system [id]", f"{name}: !!binary aGFsbG8=",
            f"{name}: !!set {{a, b}}", f"{name}: !!omap [a: 1]", f"{name}: &a [1, 2]\nb: *a",
            f"{name}: 2024-02-30", f"{name}: 2024-02-29", f"{name}: 1:59:59", f"{name}: 1{':1' * 4000}",
            f"{name}: 0x{'f' * 6000}", f"{name}: {'9' * 6000}", f"{name}: !!float abc", f"{name}: !!int abc",
            f"{name}: !!timestamp abc", f"? [a]\n: {name}", f"<<: {{{name.strip()}: 1}}",
            f"{name}: " + "[" * 3000, f"{name}: " + "1, " * 30_000, "---", "%YAML 9.9", "...",
        ]
    )  # fmt: skip
    path.write_text("\n".join(lines), "utf-8")


def some_file(random: Random) -> str:
    return random.choice([WEIGHTS, WEIGHTS, CONFIG, CALIBRATION, CARD])


def flipped_bytes(folder: Path, random: Random) -> None:
    path = folder / some_file(random)
    content = bytearray(path.read_bytes())
    first = (
        len(content) if random.random() < 0.5 else min(len(content), 3_000)
    )  # the header, half of the time
    for _ in range(random.choice([1, 1, 4, 64])):
        content[random.randrange(first)] = random.randrange(256)
    path.write_bytes(content)


def cut_or_grown(folder: Path, random: Random) -> None:
    path = folder / some_file(random)
    content = path.read_bytes()
    place = random.randrange(len(content) + 1)
    choices = [
        b"",
        content[:place],
        content[place:],
        content + bytes(9),
        content[:place] + content,
        content[:9],
    ]
    path.write_bytes(random.choice(choices))


def enormous(folder: Path, random: Random) -> None:
    """A sparse file of gigabytes, which takes no room on the disk."""
    os.truncate(folder / some_file(random), random.choice([1 << 21, 1 << 27, 2 << 30, 3 << 30, 1 << 40]))


# Weights -------------------------------------------------------------------------------------------------


def _parts(folder: Path) -> tuple[dict[str, Any], bytes]:
    content = (folder / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _write(folder: Path, header: Any, data: bytes) -> None:
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data)


def header_value(folder: Path, random: Random) -> None:
    header, data = _parts(folder)
    for _ in range(random.choice([1, 1, 3])):
        swap(header, random)
    try:
        _write(folder, header, data)
    except (TypeError, ValueError, RecursionError):
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", 9_000) + b'{"a":' * 1_800)


def other_shape(folder: Path, random: Random) -> None:
    """Tensors of other shapes, names or types, that lie in the file as they should."""
    header, data = _parts(folder)
    names = [name for name in header if name != "__metadata__"]
    for name in random.sample(names, random.choice([1, 1, 2, 5])):
        entry = header[name]
        shape = entry["shape"]
        how = random.randrange(6)
        if how == 0:
            entry["shape"] = [int(np.prod(shape))]
        elif how == 1:
            entry["shape"] = [*shape, 1]
        elif how == 2:
            entry["shape"] = shape[::-1]
        elif how == 3:
            header[random.choice(["", name + "x", "\x1b[2J", "a" * 1_000])] = header.pop(name)
        elif how == 4:
            entry["dtype"] = {"F32": "I32", "I64": "F64", "I8": "U8"}.get(entry["dtype"], "F32")
        else:  # nothing in it, and sides that multiply to anything
            sides = [0, *random.choices([1, 3, 10**6, 2**31, 2**40, 2**62], k=random.randrange(1, 6))]
            random.shuffle(sides)
            place = entry["data_offsets"][0]
            header[f"{name}.more" if random.random() < 0.5 else "similarity.relu2_2.components"] = {
                "dtype": "F32", "shape": sides, "data_offsets": [place, place],
            }  # fmt: skip
    _write(folder, header, data)


def tensor_values(folder: Path, random: Random) -> None:
    """Numbers that are finite and senseless, or not finite."""
    header, data = _parts(folder)
    content = bytearray(data)
    names = [name for name in header if name != "__metadata__"]
    for name in random.sample(names, random.choice([1, 1, 3, 10])):
        first, last = header[name]["data_offsets"]
        kind = {"F32": np.float32, "I64": np.int64, "I8": np.int8}.get(header[name]["dtype"], np.uint8)
        count = (last - first) // np.dtype(kind).itemsize
        fill = random.choice(
            [0, 1, -1, 100, -100] + ([1e30, -1e38, 1e-38, np.nan] if kind is np.float32 else [-(2**7)])
        )
        values = np.full(count, fill).astype(kind)
        if random.random() < 0.5:  # one number only
            kept = np.frombuffer(content[first:last], kind).copy()
            if count:
                kept[random.randrange(count)] = values[0]
            values = kept
        content[first:last] = values.tobytes()
    _write(folder, header, bytes(content))


# Files that are none -------------------------------------------------------------------------------------


def not_a_file(folder: Path, random: Random) -> None:
    """A file missing, a folder, a pipe, or a link: out of the folder, to itself, into it, to a device."""
    path = folder / some_file(random)
    content = path.read_bytes()
    path.unlink()
    secret = folder.parent / "secret"
    how = random.randrange(9)
    if how == 1:
        path.mkdir()
    elif how == 2:
        os.mkfifo(path)
    elif how == 3:
        path.symlink_to(secret)
    elif how == 4:
        path.symlink_to(path.name)
    elif how == 5:
        (folder / "other").write_bytes(content)
        path.symlink_to("other")
    elif how == 6:
        path.symlink_to("/dev/zero")
    elif how == 7:
        (folder.parent / "elsewhere").write_bytes(content)
        path.symlink_to("../elsewhere")
    elif how == 8:
        path.symlink_to("nowhere")


MUTATIONS: dict[str, Mutation] = {
    "a value of the config": config_value,
    "a near value of the recipe": recipe_value,
    "a value of the calibration": calibration_value,
    "lines of the config": text_lines,
    "bytes": flipped_bytes,
    "cut or grown": cut_or_grown,
    "enormous": enormous,
    "the header": header_value,
    "other tensors": other_shape,
    "numbers of the weights": tensor_values,
    "links, pipes, nothing": not_a_file,
}
_OFTEN = ("a value of the config", "a near value of the recipe", "a value of the calibration")


def mutate(folder: Path, random: Random) -> str:
    """Damages the folder in one way, sometimes two; returns the name of the (first) way."""
    names = [*MUTATIONS, *_OFTEN]
    name = random.choice(names)
    MUTATIONS[name](folder, random)
    if random.random() < 0.15 and name != "links, pipes, nothing":  # it would be written through the link
        with contextlib.suppress(Exception):  # there may be too little left of it
            MUTATIONS[random.choice(names)](folder, random)
    return name
