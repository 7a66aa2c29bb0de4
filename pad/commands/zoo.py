"""`pad zoo list | show | download | publish`: what needs no detector, and so no torch.

Each command is a function of its parsed arguments that prints its result and returns the exit status;
what the user must mend is raised as PadError.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from pad.config import zoo_folder
from pad.errors import PadError, printable
from pad.registry.publish import plan, upload
from pad.store.hub import meant, resolve_model, suggest, zoo_names
from pad.store.index import ZooModel, read_index
from pad.store.model_folder import CARD, LIMITS, present, read_inside, read_model


def list_command(args: argparse.Namespace) -> int:
    """Prints the table of all models."""
    root = args.root or zoo_folder()
    index = read_index(root)
    rows = [("NAME", "SIZE", "IMAGES", "ROC AUC", "LICENCE", "WHERE")]
    for name in zoo_names(root):
        model = index.get(name)
        if model is None:  # a folder that lies in the zoo and is not in the index yet
            rows.append((name, "", "", "", "", "local, not in the index"))
            continue
        size = f"{model.size}x{model.size}x{model.channels}"
        rows.append((name, size, f"{model.images:,}", _auc(model), model.licence, _where(model, root)))
    if len(rows) == 1:
        raise PadError(f"the zoo {root} is empty")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = (1, 2, 3)
    for row in rows:
        cells = (
            c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        print(printable("  ".join(cells).rstrip()))
    return 0


def show_command(args: argparse.Namespace) -> int:
    """Prints the index entry and the card of one model."""
    root = args.root or zoo_folder()
    name = meant(args.name.removeprefix("zoo:"), root)
    model = read_index(root).get(name)
    folder = root / (model.folder if model else name)
    print(f"use       zoo:{name}")
    if model is not None:
        print(f"title     {printable(model.title)}\ndataset   {printable(model.dataset)}")
        print(f"input     {model.size}x{model.size} pixels, {'grey' if model.channels == 1 else 'colour'}")
        print(f"images    {model.images:,} normal images trained on")
        print(f"ROC AUC   {_auc(model, interval=True)}\nlicence   {printable(model.licence)}")
        print(f"where     {_where(model, root)}")
        if model.remote is not None:
            print(f"remote    hf-hub:{model.remote['repo']}@{model.remote['revision']}")
    if present(folder):
        print(f"folder    {folder}")
    if (folder / CARD).is_file():
        card = read_inside(folder, CARD, LIMITS[CARD]).decode("utf-8", "replace")
        text = re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL).strip()
        print("\n" + "\n".join(printable(line) for line in text.splitlines()))
    return 0


def download_command(args: argparse.Namespace) -> int:
    """Makes every named model usable without network, and prints where it lies."""
    folders = [
        (spec, resolve_model(spec, args.root)) for spec in map(_spec, known_names(args.names, args.root))
    ]
    for spec, folder in folders:
        read_model(folder)  # nothing unsafe is called ready
        print(f"{spec}  {folder}")
    return 0


def publish_command(args: argparse.Namespace) -> int:
    """Shows the plan, and unless it is a dry run, uploads."""
    publication = plan(resolve_model(args.model, args.root), args.repo, args.private)
    print(publication.describe(), flush=True)
    if args.dry_run:
        print("dry run: nothing was sent")
        return 0
    commit = upload(publication)
    print(f"published   hf-hub:{publication.repo}@{commit}")
    return 0


def known_names(names: list[str], root: Path | None) -> list[str]:
    """`names`, after a look at all of them, so that a mistyped one is told before any work is done."""
    known = zoo_names(root)
    for name in names:
        short = name.removeprefix("zoo:")
        if not short.startswith("hf-hub:") and short not in known:
            raise PadError(f"the zoo has no model '{short}'{suggest(short, root)}")
    return names


def _spec(name: str) -> str:
    return name if name.startswith(("zoo:", "hf-hub:")) else f"zoo:{name}"


def _where(model: ZooModel, root: Path) -> str:
    if present(root / model.folder):
        return "local"
    return "remote" if model.remote is not None else "missing"


def _auc(model: ZooModel, interval: bool = False) -> str:
    if model.roc_auc is None:
        return "-"
    value = f"{model.roc_auc['value']:.3f}"
    if interval and {"low", "high"} <= set(model.roc_auc):
        value += f" (95 % interval {model.roc_auc['low']:.3f} to {model.roc_auc['high']:.3f})"
    return value
