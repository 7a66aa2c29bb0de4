"""Score images with a trained detector: `python evaluate.py MODEL DATA`."""

import sys

from pad.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]], program="evaluate.py"))
