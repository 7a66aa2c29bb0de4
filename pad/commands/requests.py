"""Arguments of a command line as the typed request that the library takes."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, TypeVar

Request = TypeVar("Request")


def request_of(kind: type[Request], arguments: argparse.Namespace) -> Request:
    """A dataclass from the arguments of its fields' names; what was not given keeps its default."""
    given: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        value = getattr(arguments, field.name, None)
        if value is not None:
            given[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**given)
