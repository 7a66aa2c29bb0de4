"""A detector in a program: fitted, saved, loaded, and asked.

    python examples/from_python.py [NORMAL [NEW [OUT]]]

NORMAL: a folder of normal images. NEW: a folder of images to be judged. OUT: where the model goes.
"""

import sys
from pathlib import Path

import pad

DATA = Path(__file__).parent.parent / "tests" / "data" / "fashion"


def main(normal: Path, new: Path, out: Path) -> None:
    # Without steps there is no generator: the quick views are fitted in seconds, on normal images alone.
    detector = pad.fit(normal, steps=0)
    detector.save(out)

    # A model is a folder. What is loaded scores as what was saved, to the last bit.
    detector = pad.load(out)
    paths = sorted(new.glob("*.png"))
    scores = detector.score(paths)  # (n,) float32, higher is more anomalous
    p_values = detector.p_values(paths)  # how often a normal image scores at least as high
    flagged = detector.predict(paths, fpr=0.05)  # of new normal images, at most one in twenty

    # Which view saw it: the whole, colours and textures, or parts.
    views = detector.view_p_values(paths)
    for i, path in enumerate(paths):
        verdict = "anomaly" if flagged[i] else "normal"
        seen_by = min(views, key=lambda view: views[view][i])
        print(f"{path.name}  score {scores[i]:7.3f}  p {p_values[i]:.3f}  {verdict}, most unusual: {seen_by}")


if __name__ == "__main__":
    given = [Path(word) for word in sys.argv[1:]]
    defaults = [DATA / "train" / "ankle-boot", DATA / "test" / "sandal", Path("runs/from-python")]
    main(*(given + defaults[len(given) :]))
