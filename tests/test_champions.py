"""What the page of a registered model says of its champions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskocr_core import champions
from maskocr_core.services.ledger import Entry

ROOM = 5000


def book(*entries):
    """Entries about the model `m`, numbered."""
    return [Entry(model="m", who="archivist", number=number, **facts) for number, facts in enumerate(entries, 1)]


VERDICT = {"kind": "verdict", "version": "1", "verdict": "hold", "reason": "It reads worse."}
OVERRIDE = {"kind": "promotion", "version": "1", "verdict": "hold", "override": True, "reason": "the new hand"}
SEEN = {"kind": "seen", "version": "2", "replaces": "1", "verdict": "promote"}


def test_the_champion_stands_first_then_the_latest_entry_with_its_reason():
    entries = book(VERDICT, OVERRIDE)
    text = champions.described(entries, "m", "", ROOM)
    assert f"**Version 1** since {entries[1].when}." in text
    rows = [line for line in text.splitlines() if line.startswith("- ")]
    assert rows[0].endswith("**promotion, override** 1 (hold), archivist: the new hand")
    assert rows[1].endswith("**verdict** 1 (hold), archivist: It reads worse.")


def test_a_move_that_was_only_seen_wants_a_reason_until_it_has_one():
    assert "**seen** 1 → 2 (promote), archivist: **no reason yet**" in champions.described(book(SEEN), "m", "", ROOM)
    confirmed = book(SEEN, {"kind": "confirmation", "version": "2", "confirms": 1, "reason": "by the board"})
    text = champions.described(confirmed, "m", "", ROOM)
    assert "no reason yet" not in text and "**confirmation of 1** 2, archivist: by the board" in text


def test_an_alias_that_was_taken_away_leaves_no_champion():
    text = champions.described(book(OVERRIDE, {"kind": "seen", "version": None, "replaces": "1"}), "m", "", ROOM)
    assert "No version is champion." in text and "**seen** 1 → none" in text


def test_what_people_wrote_stays_above_and_the_rest_is_made_anew():
    first = champions.described(book(OVERRIDE), "m", "Reads parish registers.\n", ROOM)
    entries = book(OVERRIDE, SEEN)
    second = champions.described(entries, "m", first, ROOM)
    assert second.startswith("Reads parish registers.\n\n### Champions") and second.count("### Champions") == 1
    assert second == champions.described(entries, "m", second, ROOM)
    added = champions.described(book(OVERRIDE), "m", second + "\n\nAsk before you promote.", ROOM)
    assert added.startswith("Reads parish registers.\n\nAsk before you promote.\n\n### Champions")
    quoted = "See ### Champions, by the ledger below."
    assert champions.described(book(OVERRIDE), "m", quoted, ROOM).startswith(quoted)


def test_people_who_fill_the_page_keep_it():
    full = "x" * ROOM
    assert champions.described(book(OVERRIDE), "m", full, ROOM) == full
    earlier = champions.described(book(OVERRIDE), "m", "", ROOM)
    assert champions.described(book(OVERRIDE), "m", f"{full}\n\n{earlier}", ROOM) == full


def test_another_model_of_the_ledger_is_not_told_of():
    assert "the new hand" not in champions.described(book(OVERRIDE), "another", "", ROOM)


@pytest.mark.parametrize("reason", ["# <script>alert(1)</script> [x](http://evil.example)\n\n# big"])
def test_a_reason_is_no_markup(reason):
    (row,) = [
        line
        for line in champions.described(book(OVERRIDE | {"reason": reason}), "m", "", ROOM).splitlines()
        if "evil" in line
    ]
    assert "<" not in row and "[x]" not in row and r"\[U+000A\]" in row


@given(st.lists(st.text(max_size=400), max_size=60), st.integers(min_value=600, max_value=ROOM))
def test_it_never_takes_more_room_than_there_is_and_leaves_out_the_oldest(reasons, room):
    entries = book(*(OVERRIDE | {"version": str(number), "reason": reason} for number, reason in enumerate(reasons)))
    text = champions.described(entries, "m", "", room)
    assert len(text) <= room
    rows = [line for line in text.splitlines() if "**promotion" in line]
    assert len(rows) == len(reasons) or f"- {len(reasons) - len(rows)} earlier" in text
    if rows:
        assert f"override** {len(reasons) - 1} (hold)" in rows[0]
