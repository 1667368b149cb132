"""``adapter_config.json``, written and read: values are checked before any method sees them.

PEFT makes a config of whatever JSON holds, and a wrong type shows as an exception somewhere inside a layer. Here each
value is checked by the type of its field, and a rank by the tensors that lie beside: it decides how much is allocated.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from pydantic import PydanticUserError, TypeAdapter, ValidationError
from torch import Tensor

from ..config.options import field_types
from ..errors import ArtefactError, UserError, near_miss
from ..json_files import read_object
from ..registry import registry
from .folder import CONFIG
from .record import COPY

LARGEST = 10**6  # no option of a method is a larger integer
RANKS = ("r", "rank", "rank_pattern", "allocated_ranks", "init_r", "target_r")


def write_config(config: PeftConfig, folder: Path) -> None:
    """Write ``adapter_config.json``, ready for inference, the same for one config whatever the order of its sets."""
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    values["inference_mode"] = True
    (folder / CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_config(folder: Path, state: Mapping[str, Tensor] | None = None) -> PeftConfig:
    """Read the config of an adapter folder.

    Args:
        folder: the folder.
        state: the tensors of the adapter: no rank is larger than their largest side. None = not known.

    Raises:
        ArtefactError: missing, damaged, or of a method that is not known here.
    """
    path = folder / CONFIG
    values = read_object(path, COPY)
    kind = values.get("peft_type")
    if not isinstance(kind, str):
        raise ArtefactError(f"'{path}' is damaged: it names no method (peft_type); {COPY}.")
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        _import_method(kind)
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        known = [getattr(key, "value", key) for key in PEFT_TYPE_TO_CONFIG_MAPPING]
        raise ArtefactError(f"'{path}' names an unknown method '{kind:.60}'.{near_miss(kind[:60], known)}")
    method = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    sides = [max(tensor.shape, default=1) for tensor in state.values()] if state else [LARGEST]
    _check(values, method, path, max(sides))
    try:
        return method.from_pretrained(str(folder))
    except (TypeError, ValueError, UserError) as error:
        raise ArtefactError(f"'{path}' is not valid: {str(error).splitlines()[0]}") from error


def _check(values: Mapping[str, Any], method: type, path: Path, most: int) -> None:
    """Check types and sizes of the values of a method's config; `most` is the largest rank there can be."""
    types = field_types(method)
    for name, value in values.items():
        if name in types and not _is_a(value, types[name]):
            raise ArtefactError(f"'{path}' is damaged: {name} = {value!r:.60} is no {_text(types[name])}; {COPY}.")
        limit = most if name in RANKS else LARGEST
        for number in _integers(value):
            if abs(number) > limit:
                raise ArtefactError(
                    f"'{path}' is damaged: {name} = {value!r:.60} is more than its tensors can hold; {COPY}."
                )


def _is_a(value: Any, kind: Any) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return False
    except (PydanticUserError, TypeError, NameError, RecursionError):  # a type of PEFT's that pydantic cannot check
        return True
    return True


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _integers(each)


def _text(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind).replace("typing.", ""))[:60]


def _import_method(kind: str) -> None:
    """Have a method of ours join PEFT's table, as it does when its module is imported: ``LOLDU`` is registered as
    ``loldu``. All modules are imported for a type that is no registered name, such as ``OFFSET_LORA``.
    """
    if kind.lower() in {part.name for part in registry.list("adapter")}:
        registry.get("adapter", kind.lower()).load()
    else:
        registry.load("adapter")
