"""What errors weigh: a file that says what an edit costs by its character's class and by the field that it touches.

A field is a part of a line that a regular expression finds. Python's matching can try so many ways that it never ends, so
a pattern is sought in the start of a line only, and refused where even that could take too many.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, field_validator

from maskocr_core.judging.forms import Amount, Name, Section, read

DEFAULT = Path(__file__).with_name("costs.json")
SEARCHED = 256
"""Characters of a line, from its start, in which fields are sought; no pattern can then walk without end."""
MOST_WAYS = 300_000
"""Ways to match `SEARCHED` characters beyond which a pattern is refused: Python's matching may try them all."""


class Classes(Section):
    """What an edit of one character costs by the character's class: that of the reference, or the inserted one."""

    digit: Amount
    """cost of an edit of a digit or another number sign (Unicode N*)"""
    letter: Amount
    """cost of an edit of a letter or of a mark on one (L*, M*), the same for every script"""
    punctuation: Amount
    """cost of an edit of punctuation (P*)"""
    space: Amount
    """cost of an edit of a space: two words joined, or one torn"""
    other: Amount
    """cost of an edit of any other character: currency, signs, invisible ones"""


class FieldWeight(Section):
    """A part of a line whose errors weigh more, or less, than others."""

    name: Name
    """name of the field, which no other field has"""
    pattern: Annotated[str, Field(max_length=1000)]
    """regular expression of Python's `re`, sought in the normalised text"""
    weight: Amount
    """factor by which the cost of an edit grows that touches the field"""
    fatal: Annotated[bool, Strict()]
    """true where a field that is read differently costs `fatal_cost` on top"""

    @field_validator("pattern")
    @classmethod
    def _can_be_sought(cls, pattern: str) -> str:
        try:
            parsed = re._parser.parse(re.compile(pattern).pattern)  # no public way leads to the parts of a pattern
            shortest, ways = parsed.getwidth()[0], _ways(parsed)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"is no regular expression ({error}): mend it") from None
        if shortest == 0:
            raise ValueError("matches the empty text, hence everywhere: ask for at least one character")
        if ways > MOST_WAYS:
            raise ValueError(
                "can match in so many ways that the search may not end: put no repeat into a repeat, "
                "and {1,9} in place of + or *"
            )
        return pattern


class Weights(Section):
    """A file of weights. Only ratios matter: all costs are in one unit, which the file names."""

    version: Literal[1]
    """version of this format, 1"""
    name: Name
    """name of this set of weights, shown beside every cost"""
    unit: Name
    """what a cost of 1 means, such as: wrong letters, minutes, EUR"""
    classes: Classes
    """costs of an edit by class of character"""
    fields: tuple[FieldWeight, ...]
    """list of fields, [] where no part of a line matters more than another"""
    fatal_cost: Amount
    """cost, once, of each place that a fatal field's pattern finds in the reference but not in the reading"""
    review_cost: Amount
    """cost of a person's reading one line, who is taken to make no error"""

    @field_validator("fields")
    @classmethod
    def _no_name_twice(cls, fields: tuple[FieldWeight, ...]) -> tuple[FieldWeight, ...]:
        if len({field.name for field in fields}) < len(fields):
            raise ValueError("name a field twice: give each another name")
        return fields


CLASSES = tuple(Classes.model_fields)


def load(path: Path | str | None = None) -> Weights:
    """The weights in a JSON file, or the default ones: an assumption to be replaced, nobody's measurement.

    Raises ValueError, in a sentence with the file, the field and the mend, for a file that cannot be read, a missing,
    unknown, negative or otherwise impossible field, and a pattern that is wrong or could be matched in too many ways.
    """
    return read(DEFAULT if path is None else Path(path), Weights)


def _ways(part: Any) -> int:
    """How many ways lead through a parsed pattern over `SEARCHED` characters; beyond `MOST_WAYS` no longer counted."""
    total = 1
    for operation, argument in part:
        name = str(operation)
        if name == "BRANCH":
            ways = sum(_ways(choice) for choice in argument[1])
        elif name.endswith("_REPEAT"):
            least, most = (min(int(times), SEARCHED) for times in argument[:2])
            each = _ways(argument[2])
            ways = sum(each**times for times in range(least, most + 1))
        else:
            nested = argument if isinstance(argument, tuple | list) else (argument,)
            ways = math.prod(_ways(inner) for inner in nested if isinstance(inner, re._parser.SubPattern))
        total = min(total * ways, MOST_WAYS + 1)
    return total
