"""Train an anomaly detector on normal images: `python train.py --data DATA --out RUN`."""

import sys

from pad.commands.parser import script

if __name__ == "__main__":
    sys.exit(script("train"))
