"""Score images with a trained detector: `python evaluate.py MODEL DATA`."""

import sys

from pad.commands.parser import script

if __name__ == "__main__":
    sys.exit(script("evaluate"))
