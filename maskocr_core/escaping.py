"""What every page for people trusts: nothing in it that came from strangers is believed.

Values are escaped, and control characters (among them the right-to-left overrides that make a text look like another,
https://trojansource.codes) are spelled out.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

_MARKUP = str.maketrans({one: f"\\{one}" for one in "\\`*_[]|#"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"})
_ESCAPED = re.compile(r"\\([\\`*_\[\]|#])|&(?:lt|gt|amp);")
_JOINERS = "\u200c\u200d"  # format characters that Persian and Indic spelling needs


def environment(folder: Path, kept: str = "") -> Any:
    """A jinja2 environment of the templates in `folder`: every value escaped, control characters but `kept` spelled out,
    nothing undefined.
    """
    return _environment(folder, lambda text: spelled_out(text, kept), autoescape=True)


def markdown(folder: Path) -> Any:
    """A jinja2 environment of Markdown templates: in every value what Markdown reads as markup is escaped, control characters
    are spelled out; the filter `code` is for values between backticks, `block` for those between fences. Nothing is undefined.
    """
    from markupsafe import Markup

    def escaped(text: str) -> str:
        return spelled_out(text).translate(_MARKUP)

    def quoted(value: str, kept: str = "") -> Any:
        return Markup(spelled_out(value, kept).replace("`", "'"))

    made = _environment(folder, escaped, autoescape=False)  # `<` is among what is escaped
    made.filters |= {"code": quoted, "block": partial(quoted, kept="\n")}
    return made


def unescaped(text: str) -> tuple[str, list[int]]:
    """Markdown with its escapes undone, and where each of these characters stands in `text`, then the end of that."""
    plain, places, end = [], [], 0
    for match in _ESCAPED.finditer(text):
        plain += [*text[end : match.start()], match[1] or html.unescape(match[0])]
        places += range(end, match.start() + 1)
        end = match.end()
    return "".join(plain) + text[end:], [*places, *range(end, len(text) + 1)]


def _environment(folder: Path, told: Callable[[str], str], autoescape: bool) -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: told(value) if type(value) is str else value,  # markup is a subclass
    )


def spelled_out(text: str, kept: str = "") -> str:
    """The text with control characters, among them those that turn its direction, made visible; those of `kept` stay."""
    return "".join(
        f"[U+{ord(character):04X}]"
        if unicodedata.category(character) in ("Cc", "Cf") and character not in _JOINERS + kept
        else character
        for character in text
    )
