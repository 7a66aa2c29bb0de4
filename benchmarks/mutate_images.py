"""Broken, odd and hostile image files through `pad evaluate --report --explain`:

    python benchmarks/mutate_images.py [--images 10000] [--model MODEL] [--seed 0] [--json FILE] [--keep DIR]

Every image is made here, from its number and the seed alone: a picture in one of the formats and modes that
`pad` reads, then one mutation (truncated, bytes flipped, a header that lies, huge dimensions, a broken
palette, odd depths, another ending, or none). They are evaluated in chunks, each by a process of its own.
Counted are tracebacks, deaths (a signal, or no end within the time limit), lost rows (an input without a row,
or a row with neither a score nor an error) and lost pictures (a scored image neither drawn nor named). The
exit status is 1 if there was any. `--keep` keeps the images and results of chunks in which there was one.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
FAULTS = ("tracebacks", "deaths", "lost rows", "lost pictures", "wrong statuses")
SIDES = (0, 1, 2, 255, 513, 20_000, 65_535, 30_000_000, 2**31 - 1, 2**32 - 1)  # that a header may claim

# Pictures in every format and mode: name -> Pillow's mode, format, and how it is saved.
SAVED: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{f"png {mode}": (mode, "PNG", {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")},
    "png P clear": ("P", "PNG", {"transparency": 3}),
    "png P half clear": ("P", "PNG", {"transparency": bytes(range(0, 250, 10))}),
    "png L clear": ("L", "PNG", {"transparency": 128}),
    "png RGB clear": ("RGB", "PNG", {"transparency": (9, 9, 9)}),
    "png P of 2 bits": ("P", "PNG", {"bits": 2}),
    "png animated": ("RGB", "PNG", {"save_all": True}),
    **{f"jpg {mode}": (mode, "JPEG", {}) for mode in ("L", "RGB", "CMYK")},
    "jpg progressive": ("RGB", "JPEG", {"progressive": True}),
    "jpg turned": ("RGB", "JPEG", {"exif": True}),
    **{f"tif {mode}": (mode, "TIFF", {}) for mode in
       ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I;16B", "I", "F")},
    **{f"tif {how}": ("RGB", "TIFF", {"compression": how}) for how in
       ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")},
    "tif F deflate": ("F", "TIFF", {"compression": "tiff_adobe_deflate"}),
    "tif group4": ("1", "TIFF", {"compression": "group4"}),
    "tif of pages": ("P", "TIFF", {"save_all": True}),
    **{f"bmp {mode}": (mode, "BMP", {}) for mode in ("1", "L", "P", "RGB", "RGBA")},
    "gif L": ("L", "GIF", {}), "gif clear": ("P", "GIF", {"transparency": 3}),
    "gif animated": ("P", "GIF", {"save_all": True}),
    **{f"webp {mode}": (mode, "WEBP", {}) for mode in ("RGB", "RGBA")},
    "webp lossless": ("RGBA", "WEBP", {"lossless": True}),
    "webp animated": ("RGB", "WEBP", {"save_all": True}),
    **{f"ppm {mode}": (mode, "PPM", {}) for mode in ("1", "L", "RGB", "I", "F")},
}  # fmt: skip
# What Pillow does not write: PNG colour type and depths that are allowed, and some that are not.
KINDS = ((0, 1), (0, 2), (0, 4), (0, 16), (2, 16), (3, 1), (3, 4), (4, 16), (6, 16), (1, 8), (2, 4), (3, 16))
DRAWN = {f"png {kind} of {depth} bits": (kind, depth) for kind, depth in KINDS}
ENDINGS = {"JPEG": "jpg", "TIFF": "tif"}


def picture(rng: np.random.Generator, mode: str) -> Image.Image:
    """A picture of up to 900 pixels a side, mostly small, in any mode."""
    width, height = sides(rng)
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    colour = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    grey = np.asarray(colour.convert("L"))
    if mode == "F":
        white = (1, 255, 65535, 1e9)[rng.integers(4)]
        return Image.fromarray(grey.astype(np.float32) / 255 * white)
    if mode == "I":
        return Image.fromarray(grey.astype(np.int32) * int(rng.choice([1, 257, 70_000, -5])))
    if mode in ("I;16", "I;16B"):
        return Image.frombytes(
            mode, (width, height), (grey.astype(">u2" if "B" in mode else "<u2") * 257).tobytes()
        )
    return colour.convert(mode)


def sides(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height; every third picture is a square, of which nothing is cropped."""
    width, height = (int(2 ** rng.uniform(0, 9.8)) for _ in range(2))
    return (width, width) if rng.random() < 1 / 3 else (width, height)


def original(rng: np.random.Generator) -> tuple[str, bytes, str]:
    """An image file that is as it should be: its name in the tables, its bytes, and the ending."""
    names = [*SAVED, *DRAWN]
    name = names[rng.integers(len(names))]
    if name in DRAWN:
        return name, drawn_png(rng, *DRAWN[name]), "png"
    mode, form, options = SAVED[name]
    image = picture(rng, mode)
    if options.get("save_all"):
        options = {**options, "append_images": [image.rotate(90), image]}
    if options.get("exif"):
        exif = Image.Exif()
        exif[274] = int(rng.integers(0, 12))  # the orientation
        options = {"exif": exif}
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return name, buffer.getvalue(), ENDINGS.get(form, form.lower())


def drawn_png(rng: np.random.Generator, colour: int, depth: int) -> bytes:
    width, height = sides(rng)
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
    row = (width * channels * depth + 7) // 8
    pixels = b"".join(b"\0" + rng.bytes(row) for _ in range(height))
    palette = [(b"PLTE", rng.bytes(3 * 2 ** min(depth, 8)))] if colour == 3 else []
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return png([(b"IHDR", header), *palette, (b"IDAT", zlib.compress(pixels, 1)), (b"IEND", b"")])


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG file of these chunks, with checksums that are right."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def chunks_of(data: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG file."""
    chunks, at = [], 8
    while at + 8 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


# Mutations: bytes -> bytes ---------------------------------------------------------------------------------


def truncated(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(len(data) * rng.random() ** 2)]


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for at in rng.integers(0, len(data), int(2 ** rng.uniform(0, 6))):
        changed[at] ^= 1 << rng.integers(8)
    return bytes(changed)


def wrong_header(data: bytes, rng: np.random.Generator) -> bytes:
    head = min(len(data), 120)
    changed = bytearray(data)
    for at in rng.integers(0, head, rng.integers(1, 5)):
        changed[at] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
    return bytes(changed)


def huge(data: bytes, rng: np.random.Generator) -> bytes:
    """The same pixels under dimensions that are not theirs, with checksums put right."""
    width, height = (int(SIDES[rng.integers(len(SIDES))]) for _ in range(2))
    if rng.random() < 0.5:  # one of the two stays plausible
        width = 64
    changed = bytearray(data)
    if data[:4] == b"\x89PNG":
        first, *rest = chunks_of(data)
        return png([(first[0], struct.pack(">II", width, height) + first[1][8:]), *rest])
    if data[:2] == b"\xff\xd8" and (frame := re.search(rb"\xff[\xc0-\xc2]\x00.\x08", data, re.DOTALL)):
        changed[frame.end() : frame.end() + 4] = struct.pack(">HH", height % 65536, width % 65536)
    elif data[:2] == b"BM":
        changed[18:26] = struct.pack("<II", width, height)
    elif data[:3] == b"GIF":
        changed[6:10] = struct.pack("<HH", width % 65536, height % 65536)
        if (block := data.find(b"\x2c", 13)) > 0:
            changed[block + 5 : block + 9] = struct.pack("<HH", width % 65536, height % 65536)
    elif data[:4] in (b"II*\0", b"MM\0*"):
        order = "<" if data[:1] == b"I" else ">"
        for tag, value in ((256, width), (257, height)):
            entry = re.search(
                re.escape(struct.pack(f"{order}H", tag)) + b"[\0\x03\x04]{2}.{4}", data, re.DOTALL
            )
            if entry:
                changed[entry.start() : entry.start() + 12] = struct.pack(f"{order}HHII", tag, 4, 1, value)
    elif data[:1] == b"P":
        return re.sub(rb"\s\d+ \d+\s", f"\n{width} {height}\n".encode(), data, count=1)
    elif data[:4] == b"RIFF":
        changed[24:30] = struct.pack("<I", width)[:3] + struct.pack("<I", height)[:3]
    return bytes(changed)


def odd_palette(data: bytes, rng: np.random.Generator) -> bytes:
    """A palette that is missing, too short or too long, or transparency of another kind; of a file without
    chunks, bytes where a palette stands."""
    if data[:4] != b"\x89PNG":
        changed = bytearray(data)
        start = {b"GI": 13, b"BM": 54}.get(data[:2], 100)
        changed[start : start + 40] = rng.bytes(len(changed[start : start + 40]))
        return bytes(changed)
    size = int(rng.choice([0, 1, 3, 7, 768, 900]))
    names = (b"PLTE", b"tRNS", b"gAMA", b"iCCP", b"eXIf", b"tEXt")
    odd = (names[rng.integers(len(names))], rng.bytes(size))
    first, *rest = [chunk for chunk in chunks_of(data) if chunk[0] != b"PLTE" or rng.random() < 0.5]
    return png([first, odd, *rest])


def odd_depth(data: bytes, rng: np.random.Generator) -> bytes:
    """A depth, colour type, compression or number of channels that the pixels do not have."""
    changed = bytearray(data)
    if data[:4] == b"\x89PNG":
        first, *rest = chunks_of(data)
        header = bytearray(first[1])
        header[8 + rng.integers(5)] = rng.choice([0, 1, 2, 3, 4, 6, 8, 16, 255])
        return png([(first[0], bytes(header)), *rest])
    if data[:4] in (b"II*\0", b"MM\0*"):
        order = "<" if data[:1] == b"I" else ">"
        tags = [258, 259, 262, 273, 277, 278, 279, 284, 317, 320, 338, 339]
        for _ in range(rng.integers(1, 3)):
            wanted = struct.pack(f"{order}H", tags[rng.integers(len(tags))])
            at = data.find(wanted + struct.pack(f"{order}H", 3), 8)
            if 0 < at < len(data) - 12:
                value = int(rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64, 32773, 34712, 65535]))
                changed[at + 8 : at + 10] = struct.pack(f"{order}H", value)
        return bytes(changed)
    if data[:2] == b"BM":
        changed[28:30] = struct.pack("<H", int(rng.choice([0, 1, 4, 8, 16, 24, 32, 64])))
        changed[30:34] = struct.pack("<I", int(rng.choice([0, 1, 2, 3, 9])))
        return bytes(changed)
    return wrong_header(data, rng)


def shuffled(data: bytes, rng: np.random.Generator) -> bytes:
    """A piece of the file left out, doubled, zeroed, or another file's."""
    low, high = sorted(int(v) for v in rng.integers(0, len(data) + 1, 2))
    middle = data[low:high]
    return (
        data[:low]
        + [b"", middle * 2, bytes(len(middle)), original(rng)[1][low:high]][rng.integers(4)]
        + data[high:]
    )


def bomb(data: bytes, rng: np.random.Generator) -> bytes:
    """A small file of very many pixels, all of them there: up to what Pillow refuses, and beyond."""
    width, height = ((30_000_000, 1), (1, 30_000_000), (9_000, 9_000), (65_000, 1_300), (20_000, 20_000))[
        rng.integers(5)
    ]
    if rng.random() < 0.3:
        buffer = io.BytesIO()
        Image.new("L", (6_000, 6_000)).save(buffer, "TIFF", compression="tiff_adobe_deflate")
        return buffer.getvalue()
    depth = int(rng.choice([1, 8]))
    compressor = zlib.compressobj(1)
    row = bytes(1 + (width * depth + 7) // 8)
    pixels = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return png([(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")])


Mutation = Callable[[bytes, np.random.Generator], bytes]
MUTATIONS: dict[str, tuple[float, Mutation]] = {  # with how often each is chosen
    "none": (3, lambda data, rng: data),
    "truncated": (2, truncated),
    "bytes flipped": (3, flipped),
    "wrong header": (2, wrong_header),
    "huge dimensions": (2, huge),
    "odd palette": (1.5, odd_palette),
    "odd depth": (2, odd_depth),
    "pieces moved": (1.5, shuffled),
    "another ending": (0.5, lambda data, rng: data),
    "rubbish": (0.2, lambda data, rng: rng.bytes(len(data) // 2)),
    "bomb": (0.02, bomb),
}


def mutant(seed: int, number: int) -> tuple[str, str, bytes, str]:
    """Image `number`: what it was, what became of it, its bytes, and the ending of its name."""
    rng = np.random.default_rng([seed, number])
    name, data, ending = original(rng)
    weights = np.array([weight for weight, _ in MUTATIONS.values()])
    mutation = list(MUTATIONS)[rng.choice(len(MUTATIONS), p=weights / weights.sum())]
    if mutation == "another ending":
        ending = ("png", "jpg", "tif", "bmp", "gif", "webp")[rng.integers(6)]
    return name, mutation, MUTATIONS[mutation][1](data, rng), ending


# Evaluation --------------------------------------------------------------------------------------------


def evaluated(
    folder: Path, out: Path, args: argparse.Namespace, images: int
) -> tuple[int | None, str, float]:
    """The exit status (None: no end in time), standard error and seconds of `pad evaluate` on the folder."""
    words = ["evaluate", args.model, str(folder), "--out", str(out), "--report", "--explain", str(images)]
    command = [sys.executable, "-m", "pad", *words, "--batch-size", "32", "--device", "cpu"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    limit = int(args.memory * 2**30)
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=environment, timeout=args.timeout,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        return None, str(error.stderr or ""), time.monotonic() - start
    return done.returncode, done.stderr, time.monotonic() - start


def checked(
    files: list[Path], out: Path, status: int | None, errors: str
) -> tuple[Counter[str], dict[str, str]]:
    """The faults of one chunk, and of each file how it went: scored, unreadable, or scored and not drawn."""
    faults: Counter[str] = Counter()
    faults["deaths"] += status is None or status < 0 or status >= 128
    faults["tracebacks"] += "Traceback (most recent call last)" in errors
    faults["wrong statuses"] += status not in (None, 0) and status > 0 and not faults["tracebacks"]
    fates: dict[str, str] = {}
    table = out / "scores.csv"
    rows = list(csv.DictReader(table.open(encoding="utf-8", newline=""))) if table.exists() else []
    found = {row["path"]: row for row in rows}
    montages = {path.name[:6] for path in (out / "explanations").glob("*.montage.png")}
    for position, row in enumerate(rows, 1):
        if f"{position:06d}" not in montages and row["score"]:
            fates[row["path"]] = "not drawn"
    for file in files:
        row = found.get(str(file))
        if row is None or bool(row["score"]) == bool(row["error"]):
            faults["lost rows"] += 1
            fates[str(file)] = "lost"
            continue
        if fates.get(str(file)) == "not drawn":
            faults["lost pictures"] += not any(
                text in errors for text in (f"no picture of {file}", "more like this")
            )
        else:
            fates[str(file)] = "scored" if row["score"] else "unreadable"
    faults["lost rows"] += max(0, len(rows) - len(files))  # rows that nobody asked for
    faults["lost pictures"] += bool(rows) and not (out / "report.html").exists()
    return faults, fates


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All chunks; the numbers as plain JSON types."""
    faults: Counter[str] = Counter()
    by_format: dict[str, Counter[str]] = {}
    by_mutation: dict[str, Counter[str]] = {}
    slowest, broken = 0.0, []
    for first in range(0, args.images, args.chunk):
        with tempfile.TemporaryDirectory(prefix="mutants-") as name:
            folder, out = Path(name) / "images", Path(name) / "out"
            folder.mkdir()
            kinds: dict[str, tuple[str, str]] = {}
            for number in range(first, min(first + args.chunk, args.images)):
                base, mutation, data, ending = mutant(args.seed, number)
                path = folder / f"{number:06d}.{ending}"
                path.write_bytes(data)
                kinds[str(path)] = (base.split()[0], mutation)
            files = sorted(folder.iterdir())
            status, errors, seconds = evaluated(folder, out, args, len(files))
            found, fates = checked(files, out, status, errors)
            for path, fate in fates.items():
                for table, key in zip((by_format, by_mutation), kinds[path], strict=True):
                    table.setdefault(key, Counter())[fate] += 1
            faults += found
            slowest = max(slowest, seconds)
            if +found:
                broken.append({"first": first, "status": status, **found, "stderr": errors[-2000:]})
                if args.keep:
                    shutil.copytree(name, args.keep / f"{first:06d}", dirs_exist_ok=True)
        print(f"{first + len(files)} of {args.images}: {seconds:.0f} s, {dict(+faults) or 'no faults'}",
              file=sys.stderr, flush=True)  # fmt: skip
    return {
        "images": args.images,
        "seed": args.seed,
        "model": args.model,
        "faults": {fault: faults[fault] for fault in FAULTS},
        "formats": {key: dict(by_format[key]) for key in sorted(by_format)},
        "mutations": {key: dict(by_mutation[key]) for key in MUTATIONS if key in by_mutation},
        "slowest_chunk_seconds": round(slowest, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
        "pillow": Image.__version__,
        "broken_chunks": broken,
    }


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    fates = ("scored", "unreadable", "not drawn", "lost")
    lines = [f"| | images | {' | '.join(fates)} |", "|---|" + "---:|" * (len(fates) + 1)]
    for part in ("formats", "mutations"):
        for key, counts in results[part].items():
            cells = [sum(counts.values()), *(counts.get(fate, 0) for fate in fates)]
            lines.append(f"| {key} | {' | '.join(map(str, cells))} |")
        lines.append(f"| | {' | '.join([''] * (len(fates) + 1))} |")
    faults = ", ".join(f"{count} {fault}" for fault, count in results["faults"].items())
    return "\n".join(lines[:-1]) + (
        f"\n\n{results['images']} images: {faults}; slowest chunk {results['slowest_chunk_seconds']} s, "
        f"peak memory {results['peak_memory_mb']} MB."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--chunk", type=int, default=200, help="images evaluated by one process")
    parser.add_argument("--model", default="zoo:fashion-mnist/ankle-boot")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=900, help="seconds that one process may take")
    parser.add_argument("--memory", type=float, default=12, help="GiB of addresses that one process may take")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--keep", type=Path, help="keep the chunks in which something went wrong there")
    args = parser.parse_args()
    results = run(args)
    print(table(results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return int(any(results["faults"].values()))


if __name__ == "__main__":
    sys.exit(main())
