"""Train an anomaly detector on normal images: `python train.py --data DATA --out RUN`."""

import sys

from pad.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]], program="train.py"))
