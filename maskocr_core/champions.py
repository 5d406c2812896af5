"""What MLflow's page of a registered model tells people of its champions: a copy of the ledger, which decides nothing."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from maskocr_core import escaping
from maskocr_core.config import Registry
from maskocr_core.services import ledger, registered
from maskocr_core.services.ledger import Entry

HEADING = "### Champions, by the ledger"
ENDING = "This is a copy for people. `maskocr audit` shows the ledger itself, and whether anybody changed it."
_OURS = re.compile(rf"^{re.escape(HEADING)}$.*?(?:^{re.escape(ENDING)}$|\Z)", re.MULTILINE | re.DOTALL)
SHOWN = 20  # the latest entries, of those that there is room for


def tell(registry: Registry) -> None:
    """Bring the page of the registered model up to date, where it is not. What was decided stands without it."""
    entries = ledger.read(ledger.place()).entries
    if not any(entry.model == registry.model for entry in entries):
        return
    try:
        so_far = registered.model_description(registry)
        description = described(entries, registry.model, so_far, registered.DESCRIPTION)
        if description != so_far:
            registered.describe_model(registry, description)
    except ValueError as error:  # of a server that went away, or that this user may only read from
        print(
            f"the page of {registry.model} in MLflow could not be brought up to date, the next command tries again: {error}",
            file=sys.stderr,
            flush=True,
        )


def described(entries: Sequence[Entry], model: str, so_far: str, room: int) -> str:
    """The description of a registered model, at most `room` characters: what people wrote there, then, as Markdown, who is
    champion, since when, by whom, and the latest entries about the model with their reasons, the last one first.

    so_far: the description of now; what stands from `HEADING` to `ENDING` is made anew, all else is kept, and comes first.
    """
    from markupsafe import Markup

    own = "\n\n".join(part.strip() for part in _OURS.split(so_far) if part.strip())
    above = f"{own}\n\n" if own else ""
    mine = [entry for entry in reversed(entries) if entry.model == model]
    template = escaping.markdown(Path(__file__).parent).get_template("champions.md.j2")
    facts = {
        "heading": Markup(HEADING),
        "ending": Markup(ENDING),
        "champion": ledger.last_move(entries, model),
        "unconfirmed": {entry.number for entry in ledger.unconfirmed(entries, model)},
    }
    for shown in range(min(SHOWN, len(mine)), -1, -1):
        text = above + template.render(facts, entries=mine[:shown], left_out=len(mine) - shown)
        if len(text) <= room:
            return text
    return own  # people wrote so much that there is no room
