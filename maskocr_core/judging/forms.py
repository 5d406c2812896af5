"""Files that people write: one JSON object each, refused in a sentence with the file, the field and the mend.

A form is a `Section`: its fields are the file's, and the string under a field tells a person what to write there.
`weights` and `prices` are forms.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

Amount = Annotated[float, Strict(), Field(ge=0.0, le=1e6)]  # strict: neither `true` nor "3" is an amount
Name = Annotated[str, Field(min_length=1, max_length=100)]


class Section(BaseModel):
    """A part of a file that people write. Frozen; the string under a field says what it is, in errors too."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


File = TypeVar("File", bound=Section)


def read(path: Path, form: type[File]) -> File:
    """One JSON object as a `form`. Raises ValueError, in a sentence with the file, the field and the mend."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_named_once)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} cannot be read as JSON ({reason}): give a file as docs/cost.md shows it") from None
    try:
        return form.model_validate(given)
    except ValidationError as error:
        raise ValueError(f"{path}: {_sentence(error.errors()[0], form)}") from None


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) < len(pairs):
        raise ValueError(f"a name stands twice among {', '.join(name for name, _ in pairs)}")
    return named


def _sentence(error: Any, form: type[Section]) -> str:
    """What is wrong with a field, and the mend, from pydantic's account of an error."""
    schema = form.model_json_schema()
    described = {
        name: known.get("description", "")
        for part in (*schema.get("$defs", {}).values(), schema)
        for name, known in part["properties"].items()
    }
    field, name = ".".join(map(str, error["loc"])), str(error["loc"][-1]) if error["loc"] else ""
    message = error["msg"].removeprefix("Value error, ")
    given = repr(error["input"])
    given = given if len(given) <= 60 else f"{given[:60]}…"
    match error["type"]:
        case "missing":
            return f"{field} is missing: add it ({described[name]})"
        case "model_type":
            return f"{field or 'the whole'} is {given}, but must be an object: put its fields into braces"
        case "extra_forbidden":
            close = difflib.get_close_matches(name, described, n=1)
            return f"{field} is unknown: " + (f"did you mean {close[0]}?" if close else "remove it")
        case "value_error":
            return f"{field} {given} {message}"
        case _:
            meant = described.get(name, "an entry of a list")
            return f"{field} is {given}, but {message[0].lower()}{message[1:]}: mend it ({meant})"
