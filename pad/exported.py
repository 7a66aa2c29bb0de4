"""A detector that was exported (`pad export`), run by ONNX Runtime: no torch, no backbone, no recipe.

The smallest environment that scores: onnxruntime, numpy, pillow. Pictures are decoded as everywhere
(pad/images/read.py); all else is in the graph, and what the graph cannot say of itself in its metadata.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pad.errors import PadError, one_line, shown
from pad.images.imageset import ImageSet
from pad.images.read import ImageError, pixels_of
from pad.judging.calibration import Calibration

KEY, FORMAT = "pad", 1  # in the metadata
_AT_ONCE = 1 << 22  # pixels of pictures that are looked at in one go


class Looked(NamedTuple):
    """Some consecutive images of an ImageSet: what there is to judge, and why there is nothing."""

    scores: dict[int, float]  # by index
    views: dict[int, NDArray[np.float32]]  # the score in each view
    errors: dict[int, str]  # why one cannot be read


class Exported:
    """A file that `pad export` wrote.

    Attributes:
        card: what it says of itself (pad/export/onnx.py).
        channels: of the pictures that it judges, 1 (grey) or 3.
        views: the names of its views.
        calibration: the scores of held-out normal images.

    Raises PadError if it is no such file, or ONNX Runtime is not there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._session = _session(self.path)
        try:
            self.card = json.loads(self._session.get_modelmeta().custom_metadata_map[KEY])
            found = self.card["format"]
            self.channels, self.views = int(self.card["channels"]), tuple(map(str, self.card["views"]))
            calibration = Calibration.from_dict(self.card["calibration"], str(self.path))
            int8 = self.card.get("int8")
            doubt = None if int8 is None else f"the graph is of int8: {said_of_int8(int8)}"
            self.calibration = dataclasses.replace(calibration, doubt=doubt)
        except PadError:
            raise
        except (KeyError, TypeError, ValueError):
            raise PadError(f"{self.path} is not a file of `pad export`") from None
        if found != FORMAT:
            raise PadError(f"{self.path} is of format {shown(found)}, this pad reads {FORMAT}: upgrade pad")

    def run(
        self, images: NDArray[np.uint8], fpr: float | None = None, explain: bool = False
    ) -> dict[str, NDArray[Any]]:
        """All that the graph says of pictures (n, H, W, 1 or 3), by the names of pad/export/graph.py."""
        given: dict[str, Any] = {"images": images, "explain": np.array(explain)}
        if fpr is not None:
            given["fpr"] = np.array(fpr, np.float64)
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, given), strict=True))

    def look(self, images: ImageSet, batch_size: int, workers: int = 2) -> Iterator[Looked]:
        """All images in order, at most `batch_size` at a time, decoded ahead."""
        pieces = [range(i, min(i + batch_size, len(images))) for i in range(0, len(images), batch_size)]
        with ThreadPoolExecutor(workers, "decode") as pool:
            for piece in pieces:
                yield self._looked(images, piece, pool)

    def _looked(self, images: ImageSet, chosen: range, pool: ThreadPoolExecutor) -> Looked:
        looked = Looked({}, {}, {})
        waiting: dict[tuple[int, ...], list[tuple[int, NDArray[np.uint8]]]] = {}
        count = 0
        for index, pixels in zip(chosen, _ahead(self._pixels, images, chosen, pool), strict=True):
            if isinstance(pixels, str):
                looked.errors[index] = pixels
                continue
            waiting.setdefault(pixels.shape, []).append((index, pixels))
            count += pixels.size
            if count > _AT_ONCE:
                self._judge(waiting, looked)
                count = 0
        self._judge(waiting, looked)
        return looked

    def _judge(
        self, waiting: dict[tuple[int, ...], list[tuple[int, NDArray[np.uint8]]]], looked: Looked
    ) -> None:
        """Pictures of one shape are looked at together."""
        for group in waiting.values():
            said = self.run(np.stack([pixels for _, pixels in group]))
            for row, (index, _) in enumerate(group):
                looked.scores[index] = float(said["score"][row])
                looked.views[index] = said["view_scores"][row]
        waiting.clear()

    def _pixels(self, images: ImageSet, index: int) -> NDArray[np.uint8] | str:
        """(H, W, channels), or why there is none."""
        try:
            return pixels_at_8_bits(images, index, self.channels)
        except ImageError as error:
            return error.reason
        except Exception as error:  # pixels that Pillow cannot convert, a container that is lost
            return f"cannot be decoded ({str(error) or type(error).__name__})"


def said_of_int8(loss: Mapping[str, float]) -> str:
    """What quantization costs (pad/export/int8.py), as a sentence. Raises KeyError, TypeError or ValueError
    for something else."""
    names = (
        "pictures",
        "largest_change_of_p_value",
        "verdicts_changed",
        "false_alarms",
        "false_alarms_before",
    )
    pictures, change, verdicts, alarms, before = (float(loss[name]) for name in names)
    return (
        f"of {pictures:.0f} pictures p-values changed by up to {change:.2g}, and {verdicts:.1%} of the "
        f"verdicts at 5%; of normal images about {alarms:.1%} are flagged there instead of {before:.1%}"
    )


def pixels_at_8_bits(images: ImageSet, index: int, channels: int) -> NDArray[np.uint8]:
    """The pixels of an image as an exported graph takes them, (H, W, channels). Raises ImageError if it
    cannot be read, or has more than 8 bits."""
    pixels, _ = pixels_of(images.open(index), channels)
    if pixels.dtype != np.uint8:
        raise ImageError(images.samples[index].name, "more than 8 bits a channel, which an exported graph "
                         "does not take: score it with the model itself")  # fmt: skip
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _ahead(
    read: Any, images: ImageSet, chosen: Sequence[int], pool: ThreadPoolExecutor, most: int = 4
) -> Iterator[NDArray[np.uint8] | str]:
    """The pictures in order, of which at most `most` wait to be taken."""
    waiting = [pool.submit(read, images, index) for index in chosen[:most]]
    for index in [*chosen[most:], *[None] * min(most, len(chosen))]:
        yield waiting.pop(0).result()
        if index is not None:
            waiting.append(pool.submit(read, images, index))


def _session(path: Path) -> Any:
    if not path.is_file():
        raise PadError(f"{path}: no such file")
    try:
        import onnxruntime
    except ImportError:
        raise PadError("a .onnx file needs ONNX Runtime: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of the runtime's own kinds
        raise PadError(f"{path} cannot be read as ONNX: {one_line(str(error))}") from None
