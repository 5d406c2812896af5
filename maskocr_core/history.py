"""What MLflow's page of a registered model tells people of its champions: a copy of the ledger, which decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maskocr_core import escaping
from maskocr_core.services import ledger
from maskocr_core.services.ledger import Entry

HEADING = "### Champions, by the ledger"
SHOWN = 20  # the latest entries, of those that there is room for


def described(entries: Sequence[Entry], model: str, so_far: str, room: int) -> str:
    """The description of a registered model, at most `room` characters: what people wrote there, then, as Markdown, who is
    champion, since when, by whom, and the latest entries about the model with their reasons, the last one first.

    so_far: the description of now; what stands below `HEADING` is made anew, what stands above is kept.
    """
    from markupsafe import Markup

    own = so_far.partition(HEADING)[0].rstrip()
    above = f"{own}\n\n" if own else ""
    mine = [entry for entry in reversed(entries) if entry.model == model]
    template = escaping.markdown(Path(__file__).parent).get_template("history.md.j2")
    for shown in range(min(SHOWN, len(mine)), -1, -1):
        text = above + template.render(
            heading=Markup(HEADING),
            champion=ledger.last_move(entries, model),
            entries=mine[:shown],
            left_out=len(mine) - shown,
            unconfirmed={entry.number for entry in ledger.unconfirmed(entries, model)},
        )
        if len(text) <= room:
            return text
    return so_far  # people wrote so much that there is no room
