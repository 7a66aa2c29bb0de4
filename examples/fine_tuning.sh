#!/bin/sh
# A second kind of normal: a trained model learns it, and keeps what was normal before.
#
#     examples/fine_tuning.sh [NEW_NORMAL [MODEL [OUT]]]
#
# NEW_NORMAL: a folder of images that are to be normal, too. MODEL: a run folder, a model folder or zoo:NAME.
set -eu
data=tests/data/fashion
new=${1:-$data/test/sneaker}
model=${2:-zoo:fashion-mnist/ankle-boot}
out=${3:-runs/fine-tuned}

# Images of the old normal are replayed among the new ones: your own (--replay), or those that the model makes.
# --check: anomalies that it should go on finding. Few steps, to be quick; without --steps it takes a seventh of MODEL's.
python -m pad train --from "$model" --data "$new" --replay "$data/train/ankle-boot" --check "$data/test/trouser" \
    --out "$out" --steps 5

# With images of the old normal the calibration covers both; all of them can be judged.
python -m pad evaluate "$out" "$data/test/normal" "$new" --out "$out/results"
