"""JSON as the standard has it, from anywhere: without NaN, without a key given twice, without tracebacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pad.errors import PadError, one_line


def parse_json(content: bytes, where: Path | str, what: str = "content") -> Any:
    """What JSON text holds. Raises PadError, one line that begins with `where`, for anything else."""

    def refuse_constant(word: str) -> Any:
        raise ValueError(f"{word} is not JSON")

    def refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) != len(pairs):
            raise ValueError("a key is given twice")
        return mapping

    try:
        text = content.decode("utf-8")
        return json.loads(text, parse_constant=refuse_constant, object_pairs_hook=refuse_twice)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else one_line(str(error))
        raise PadError(f"{where}: its {what} is not JSON: {reason}; refused") from None
