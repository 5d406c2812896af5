"""What is brought of a log that grows elsewhere: its new end, all of it where another attempt began, and nothing out of its place."""

from hypothesis import given
from hypothesis import strategies as st

from maskocr_core import artifacts
from maskocr_core.services import post

EVENTS = st.sampled_from(["row", "brought", "lost", "another attempt"])


def looked(path, known, appended=False):
    grown = post._grown(path, known, appended)
    if grown:
        known[grown.path] = grown.known
    return grown


@given(events=st.lists(EVENTS, max_size=30), rows=st.lists(st.binary(min_size=1, max_size=9), min_size=30, max_size=30))
def test_what_arrives_is_the_log_as_far_as_it_was_brought_and_never_has_a_gap(events, rows, tmp_path_factory):
    there, here = tmp_path_factory.mktemp("there"), tmp_path_factory.mktemp("here")
    log, told, known, logs = there / post.LOG, here / post.LOG, {}, [b""]
    for event, row in [*zip(events, rows), ("another attempt", b""), ("row", b"the end"), ("brought", b"")]:
        if event == "row":
            with log.open("ab") as file:
                file.write(row)
            logs[-1] += row
        elif event == "another attempt":  # in another process and another folder, with the log of the last checkpoint
            log.unlink(missing_ok=True)
            known.clear()
            logs.append(b"")
        elif (grown := looked(log, known, appended=True)) and event == "brought":
            post._delivered(post.Letter(str(here), post.LOG, grown.begin, grown.content))
        assert not told.is_file() or any(whole.startswith(told.read_bytes()) for whole in logs)
    assert told.read_bytes() == b"the end"


def test_a_picture_is_brought_once_and_whole_again_when_it_is_drawn_anew(tmp_path):
    picture, known = tmp_path / "shown.json", {}
    assert looked(picture, known) is None
    for content in (b"one", b"one and two"):
        artifacts.write_bytes(picture, content)
        grown = looked(picture, known)
        assert grown and (grown.begin, grown.content) == (0, content)
        assert looked(picture, known) is None
