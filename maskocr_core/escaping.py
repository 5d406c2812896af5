"""What every page for people trusts: nothing in it that came from strangers is believed.

Values are escaped, and control characters (among them the right-to-left overrides that make a text look like another,
https://trojansource.codes) are spelled out.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

_MARKUP = "\\`*_[]<>|#"
_JOINERS = "\u200c\u200d"  # format characters that Persian and Indic spelling needs


def environment(folder: Path, kept: str = "") -> Any:
    """A jinja2 environment of the templates in `folder`: every value escaped, control characters but `kept` spelled out,
    nothing undefined.
    """
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: spelled_out(value, kept) if type(value) is str else value,  # markup is a subclass
    )


class Literal(str):
    """Text that stands in a page as it is."""


def markdown(folder: Path) -> Any:
    """A jinja2 environment of Markdown templates: in every value what Markdown reads as markup is escaped, control characters
    are spelled out; the filter `code` is for values between backticks. Nothing is undefined.
    """
    import jinja2

    def escaped(value: Any) -> Any:
        return (
            "".join(f"\\{one}" if one in _MARKUP else one for one in spelled_out(value))
            if type(value) is str
            else value
        )

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=False,  # what a value may not do in HTML it may not do here either: `<` is among the markup
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=escaped,
    )
    made.filters["code"] = lambda value: Literal(spelled_out(value).replace("`", "'"))
    return made


def spelled_out(text: str, kept: str = "") -> str:
    """The text with control characters, among them those that turn its direction, made visible; those of `kept` stay."""
    return "".join(
        f"[U+{ord(character):04X}]"
        if unicodedata.category(character) in ("Cc", "Cf") and character not in _JOINERS + kept
        else character
        for character in text
    )
