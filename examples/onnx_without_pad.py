"""An exported model in a program of its own: ONNX Runtime, numpy and Pillow are all it takes.

    pad export MODEL --out model.onnx
    python examples/onnx_without_pad.py model.onnx IMAGE...

It prints a line for each picture, and draws the map of the most anomalous one into anomaly.png.
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image


def main(file: str, paths: list[str]) -> None:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = []
    for path in paths:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))[None]  # uint8 (1, height, width, 3), of any size
        # `fpr` is the false-alarm rate on normal images; without it, 0.05.
        given = {"images": pixels, "fpr": np.array(0.05), "explain": np.array(True)}
        score, p_value, anomalous, anomaly_map = session.run(
            ["score", "p_value", "anomalous", "anomaly_map"], given
        )
        verdict = "anomaly" if anomalous[0] else "normal"
        print(f"{path}: {verdict}, score {score[0]:.4f}, p-value {p_value[0]:.4f}")
        found.append((float(score[0]), path, anomaly_map[0]))
    _, path, anomaly_map = max(found)
    bright = (255 * anomaly_map / max(float(anomaly_map.max()), 1e-12)).astype(np.uint8)
    Image.fromarray(bright).resize((256, 256)).save("anomaly.png")
    print(f"most anomalous: {path}, see anomaly.png")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
