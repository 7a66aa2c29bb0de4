#!/bin/sh
# A detector of your own folder of normal images, without a line of Python.
#
#     examples/own_folder.sh [NORMAL [NEW [OUT]]]
#
# NORMAL: a folder of normal images. NEW: images to be judged. OUT: where the run and its results go.
# Without them it takes pictures of ankle boots, and tells other clothes from them.
set -eu
normal=${1:-tests/data/fashion/train/ankle-boot}
new=${2:-tests/data/fashion/test}
out=${3:-runs/own-folder}

# What would be done, the recipe that was chosen, and which false-alarm rates can be held. Nothing is written.
python -m pad train --data "$normal" --out "$out" --steps 0 --dry-run

# The quick views alone, in seconds. A generator can be added later: --out OUT --resume --steps 1000
python -m pad train --data "$normal" --out "$out" --steps 0

# Scores, p-values and verdicts in OUT/results/scores.csv, figures in summary.json, a page to look at in report.html.
python -m pad evaluate "$out" "$new" --out "$out/results" --fpr 0.05 --report
