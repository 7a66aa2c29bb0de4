"""`pad zoo verify`: are models whole, and do they score as recorded?"""

from __future__ import annotations

import argparse

from pad.commands.zoo import known_names
from pad.config import zoo_folder
from pad.errors import PadError
from pad.registry.verify import verify_model
from pad.store.hub import zoo_names
from pad.store.index import read_index
from pad.store.model_folder import present


def verify(args: argparse.Namespace) -> int:
    """Verifies models one by one; PadError at the end names those that failed."""
    root = args.root or zoo_folder()
    index = read_index(root)
    names = [n.removeprefix("zoo:") for n in known_names(args.names, root)] or zoo_names(root)
    failed = []
    for name in names:
        model = index.get(name)
        local = present(root / (model.folder if model else name))
        if not args.names and not local:
            print(f"{name}: skipped, not on this machine")
            continue
        try:
            report = verify_model(name, root)
        except PadError as error:
            failed.append(name)
            report = f"FAILED: {error}"
        print(f"{name}: {report}", flush=True)
    if not names:
        raise PadError(f"the zoo {root} is empty")
    if failed:
        raise PadError(f"{len(failed)} of {len(names)} models failed verification: {', '.join(failed)}")
    return 0
