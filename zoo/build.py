"""Rebuild models of the zoo from their recipes: `python zoo/build.py NAME...` is `pad zoo build NAME...`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that it runs from the tree, installed or not

from pad.commands.parser import main

if __name__ == "__main__":
    sys.exit(main(["zoo", "build", *sys.argv[1:]]))
