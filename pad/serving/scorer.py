"""Scoring for many clients at once: pictures that wait are scored together, in one thread.

Nothing waits for others to come: while a batch is scored the next ones gather, so that batches are as large
as the load is. Pictures are decoded beside it, as many at a time as there are threads for it.
"""

from __future__ import annotations

import asyncio
import base64
import io
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from pad.detector import Detector
from pad.errors import PadError
from pad.images.read import IMAGE_FORMATS, ImageError, read_image
from pad.images.tiles import Pictures, as_seen
from pad.judging.rows import Row, make_row
from pad.serving.request import ServeRequest

DECODERS = 2  # threads
DECODED_AT_ONCE = 16  # pictures of a request


class Given(NamedTuple):
    """A picture as it was sent: the bytes of a file, or why there are none."""

    name: str
    content: bytes
    error: str = ""


class TooMany(PadError):
    """More waits than may wait: try later."""


class _Waiting(NamedTuple):
    name: str
    pictures: Pictures  # of one
    answer: asyncio.Future[Row]


class Scorer:
    """A detector behind a queue. All methods are of one event loop.

    scored: is told of the size of each batch.
    """

    def __init__(self, detector: Detector, request: ServeRequest, scored: Callable[[int], object]) -> None:
        self.detector, self.request, self._scored = detector, request, scored
        self._queue: deque[_Waiting] = deque()
        self.waiting = 0  # pictures that were asked for and have no answer yet
        self._decoding = ThreadPoolExecutor(DECODERS, "decode")
        self._computing = ThreadPoolExecutor(1, "score")
        self._work: asyncio.Task[None] | None = None

    async def score(self, given: Sequence[Given]) -> list[Row]:
        """A row for each picture, in order. Raises TooMany."""
        if self.waiting + len(given) > self.request.max_queue:
            raise TooMany("too many pictures are waiting; try later")
        self.waiting += len(given)
        parts = [given[start : start + DECODED_AT_ONCE] for start in range(0, len(given), DECODED_AT_ONCE)]
        tasks = [asyncio.ensure_future(self._some(part)) for part in parts]
        try:
            return [row for rows in await asyncio.gather(*tasks) for row in rows]
        finally:
            self.waiting -= len(given)
            for task in tasks:
                task.cancel()

    async def _some(self, given: Sequence[Given]) -> list[Row]:
        loop = asyncio.get_running_loop()
        decoded = await loop.run_in_executor(self._decoding, self._decoded, given)
        answers: list[asyncio.Future[Row]] = []
        for each, pictures in zip(given, decoded, strict=True):
            answers.append(loop.create_future())
            if isinstance(pictures, Row):
                answers[-1].set_result(pictures)
            else:
                self._queue.append(_Waiting(each.name, pictures, answers[-1]))
        if self._queue and (self._work is None or self._work.done()):
            self._work = asyncio.ensure_future(self._work_off())
        return await asyncio.gather(*answers)

    def _decoded(self, given: Sequence[Given]) -> list[Pictures | Row]:
        """What is looked at of each picture, or a row that says why it cannot be."""
        decoded: list[Pictures | Row] = []
        for each in given:
            try:
                decoded.append(as_seen([self._opened(each)], self.detector.config))
            except ImageError as error:
                decoded.append(Row(each.name, error=error.reason))
            except Exception as error:  # pixels that cannot be converted: the others get their answers
                decoded.append(Row(each.name, error=f"cannot be decoded ({type(error).__name__})"))
        return decoded

    def _opened(self, given: Given) -> Image.Image:
        if given.error:
            raise ImageError("", given.error)
        check_pixels(given.content, self.request.max_pixels)
        return read_image(given.content)

    async def _work_off(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue:
            batch: list[_Waiting] = []
            while self._queue and len(batch) < self.request.batch_size:
                waiting = self._queue.popleft()
                if not waiting.answer.done():  # whoever asked may have gone
                    batch.append(waiting)
            rows = await loop.run_in_executor(self._computing, self._rows, batch) if batch else []
            for waiting, row in zip(batch, rows, strict=True):
                if not waiting.answer.done():
                    waiting.answer.set_result(row)

    def _rows(self, batch: Sequence[_Waiting]) -> list[Row]:
        """A batch scored together; where that fails, one by one."""
        self._scored(len(batch))
        try:
            return self._scored_together(batch)
        except Exception:
            rows = []
            for waiting in batch:
                try:
                    rows += self._scored_together([waiting])
                except Exception as error:  # of whatever library: the others get their answers
                    rows.append(Row(waiting.name, error=f"cannot be scored ({type(error).__name__})"))
            return rows

    def _scored_together(self, batch: Sequence[_Waiting]) -> list[Row]:
        given = [waiting.pictures for waiting in batch]
        tensors = [pictures for pictures in given if isinstance(pictures, Tensor)]
        tiles = [picture for pictures in given if isinstance(pictures, list) for picture in pictures]
        views = self.detector.score_views(tiles or torch.cat(tensors))
        scores, each_view = self.detector.fused(views).tolist(), self.detector.each_view_p_values(views)
        request, calibration = self.request, self.detector.calibration
        return [
            make_row(w.name, score, calibration, request.fpr, confidence=request.confidence, views=p_values)
            for w, score, p_values in zip(batch, scores, each_view, strict=True)
        ]

    async def explain(self, given: Given) -> tuple[Row, str]:
        """The row of a picture, and a PNG in base64 that shows why: the picture, the nearest normal image,
        and where they differ. Raises TooMany."""
        if self.waiting >= self.request.max_queue:
            raise TooMany("too many pictures are waiting; try later")
        self.waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._computing, self._explained, given)
        except ImageError as error:
            return Row(given.name, error=error.reason), ""
        except PadError as error:
            return Row(given.name, error=str(error)), ""
        finally:
            self.waiting -= 1

    def _explained(self, given: Given) -> tuple[Row, str]:
        request = self.request
        (why,) = self.detector.explain([self._opened(given)], request.fpr, request.confidence)
        row = make_row(
            given.name, why.score, self.detector.calibration, request.fpr, confidence=request.confidence,
            views=why.views,
        )  # fmt: skip
        content = io.BytesIO()
        why.montage().save(content, "PNG")
        return row, base64.b64encode(content.getvalue()).decode("ascii")

    def close(self) -> None:
        self._decoding.shutdown(wait=False, cancel_futures=True)
        self._computing.shutdown(wait=False, cancel_futures=True)


def check_pixels(content: bytes, most: int) -> None:
    """Raises ImageError for a picture of more pixels than are allowed, before it is decoded."""
    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            width, height = image.size
    except Exception:  # whoever decodes it says what is wrong
        return
    if width * height > most:
        raise ImageError("", f"too large: {width:,}x{height:,} pixels, at most {most / 1e6:g} million")
