"""JSON that somebody else may have written: read in bounded time and memory, and checked by a type.

``json.loads`` gives NaN, numbers that no float holds and whatever nesting there is, and each of these breaks something
further on. Here such a file is one line: which file, where in it, and what to do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import ArtefactError

MOST_BYTES = 256 * 2**20  # no record of ours comes near


class Strict(BaseModel):
    """Base of what is read from such files: values have the very types that were written, and are finite.

    Further keys are kept by whoever reads the file, and checked by nobody.
    """

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)


class Closed(Strict):
    """One without further keys."""

    model_config = ConfigDict(extra="forbid")


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """Read the JSON object in a file.

    Args:
        path: a UTF-8 file.
        remedy: ends the message where there is none.

    Raises:
        ArtefactError: no regular file, too large, no JSON, no object, or with a number that is not finite.
    """
    if not path.is_file():
        raise ArtefactError(f"'{path}' is missing: {remedy}.")
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise ValueError(f"it has {size:,} bytes, more than {MOST_BYTES:,}")
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ArtefactError(f"'{path}' is damaged: it is nested too deep; {remedy}.") from None
    except (ValueError, OSError) as error:  # text that is no UTF-8 and integers of thousands of digits too
        raise ArtefactError(f"'{path}' is damaged: not valid JSON ({str(error).splitlines()[0]}); {remedy}.") from None
    if not isinstance(values, dict):
        raise ArtefactError(f"'{path}' is damaged: it is no JSON object; {remedy}.")
    return values


def finite(value: Any) -> Any:
    """Return `value` with None in place of numbers that are not finite, such as a metric without a case to count."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, list | tuple) else value


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of the tensors in a safetensors file, by name, and nothing else of it.

    Raises:
        ArtefactError: damaged.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > 100 * 2**20:
                raise ValueError(f"its header has {length:,} bytes")
            header = json.loads(file.read(length))
        return {name: tuple(map(int, entry["shape"])) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArtefactError(f"'{path}' is damaged: {reason}; get a fresh copy.") from None


def check_object(path: Path, values: Mapping[str, Any], model: type[BaseModel], remedy: str) -> None:
    """Check what was read from `path` as a `model`.

    Raises:
        ArtefactError: keys are missing, all of which are named, or a value is not what it must be: the first.
    """
    try:
        model.model_validate(dict(values))
    except ValidationError as error:
        problems = error.errors(include_url=False)
        missing = sorted(".".join(map(str, each["loc"])) for each in problems if each["type"] == "missing")
        if missing:
            raise ArtefactError(f"'{path}' is damaged: it lacks {', '.join(missing)}; {remedy}.") from None
        place, reason = ".".join(map(str, problems[0]["loc"])) or "its top level", problems[0]["msg"]
        raise ArtefactError(f"'{path}' is damaged at '{place[:200]}' ({_short(reason)}); {remedy}.") from None
    except RecursionError:
        raise ArtefactError(f"'{path}' is damaged: it is nested too deep; {remedy}.") from None


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is larger than any number")
    return value


def _short(text: str) -> str:
    line = " ".join(text.removeprefix("Value error, ").split())
    return line if len(line) < 160 else f"{line[:157]}..."
