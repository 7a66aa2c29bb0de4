"""`pad zoo build NAME...`: trains, measures and writes models of the zoo."""

from __future__ import annotations

import argparse

from pad.errors import PadError, did_you_mean
from pad.registry.build import build_model
from pad.registry.entries import read_entries


def build(args: argparse.Namespace) -> int:
    """`pad zoo build NAME...`: each model in turn."""
    entries = read_entries(args.root)
    for name in args.names:
        if name not in entries:
            hint = did_you_mean(name, entries) or f"; known: {', '.join(entries)}"
            raise PadError(f"no recipe for a zoo model '{name}'{hint}")
    for name in args.names:
        folder = build_model(entries[name], args.runs, args.root, args.data_root, args.device, not args.quiet)
        print(f"{name}: {folder}", flush=True)
    return 0
