"""Why an image is flagged, as pictures: the image, the nearest normal one, and where the two differ.

    python examples/explanations.py [MODEL [IMAGES [OUT]]]

MODEL: a run folder, a model folder or zoo:NAME. IMAGES: a folder. OUT: where the pictures go.
On the command line the same is `pad evaluate MODEL IMAGES --out OUT --explain`.
"""

import sys
from pathlib import Path

import pad

DATA = Path(__file__).parent.parent / "tests" / "data" / "fashion"


def main(model: str, images: Path, out: Path) -> None:
    detector = pad.load(model)
    paths = sorted(images.glob("*.png"))[:5]
    out.mkdir(parents=True, exist_ok=True)
    for path, explanation in zip(paths, detector.explain(paths), strict=True):
        explanation.montage().save(out / path.name)
        # The map has the size of the picture: where is it brightest?
        where = explanation.anomaly_map
        row, column = divmod(int(where.argmax()), where.shape[1])
        print(
            f"{path.name}: {explanation.verdict or 'no verdict'}, p-value {explanation.p_value:.3f}, "
            f"most unusual at column {column}, row {row}"
        )


if __name__ == "__main__":
    given = sys.argv[1:]
    defaults = ["zoo:fashion-mnist/ankle-boot", str(DATA / "test" / "bag"), "runs/why"]
    model, images, out = given + defaults[len(given) :]
    main(model, Path(images), Path(out))
