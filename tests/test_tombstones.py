"""The list of what is forgotten: honoured at once, never lost, and without names."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import seaweed

from maskocr_core.data import tombstones
from maskocr_core.services import storage

ROWS = [
    {"source": source, "document_id": document, "page_id": page, "line_id": line}
    for source in ("archive", "factory")
    for document in ("letters", "diary")
    for page in ("1", "2")
    for line in ("a", "b")
]
TABLE = pa.Table.from_pylist(ROWS)


def hidden(*parts: str) -> list[dict]:
    mask = tombstones.of([tombstones.entry("asked", *parts)]).hides(TABLE)
    return [row for row, hides in zip(ROWS, mask) if hides]


def test_a_tombstone_hides_what_its_parts_name_and_nothing_else():
    keys = tombstones.KEY
    for depth in range(1, 5):
        parts = dict(zip(keys, ("archive", "letters", "2", "b")[:depth]))
        wanted = [row for row in ROWS if all(row[name] == value for name, value in parts.items())]
        assert hidden(*parts.values()) == wanted


def test_a_document_of_any_source_is_hidden_in_all_of_them():
    assert hidden(tombstones.ANY_SOURCE, "diary") == [row for row in ROWS if row["document_id"] == "diary"]


def test_a_document_is_touched_by_a_tombstone_of_one_of_its_lines():
    listed = tombstones.of([tombstones.entry("expired", "archive", "letters", "2", "b")])
    assert listed.touches("archive", "letters")
    assert not listed.touches("archive", "diary") and not listed.touches("factory", "letters")
    assert not listed.hides_document("archive", "letters")


@given(st.lists(st.text(), min_size=1, max_size=4), st.lists(st.text(), min_size=1, max_size=4))
def test_two_names_have_one_digest_only_if_they_are_the_same(one, other):
    assert (tombstones.digest(*one) == tombstones.digest(*other)) == (one == other)


def test_the_list_holds_no_name():
    tombstones.add([tombstones.entry("asked by letter", "the archive", "the letters of Mrs Miller")])
    tombstones.add([tombstones.entry("expired", "the archive", "the diary", "page 1", "ab" * 16)])
    content = storage.open_input(tombstones.location()).read().decode()
    assert "asked by letter" in content
    for name in ("archive", "letters", "Miller", "diary", "page 1", "abab"):
        assert name not in content.replace("asked by letter", "")


def test_without_a_list_nothing_is_hidden():
    assert not tombstones.load() and tombstones.load().version == ""
    assert not tombstones.load().hides(TABLE).any()


def test_a_reader_sees_a_new_tombstone_at_once_even_one_written_in_the_same_instant():
    times = None
    for number in range(5):
        tombstones.add([tombstones.entry("asked", "archive", str(number))])
        path = tombstones.location()
        times = times or os.stat(path).st_mtime_ns
        os.utime(path, ns=(times, times))
        assert tombstones.load().hides_document("archive", str(number))


def test_adding_again_changes_nothing_and_a_generator_serves():
    stone = tombstones.entry("asked", "archive", "diary")
    tombstones.add([stone])
    before = tombstones.entries(tombstones.location())
    tombstones.add({**stone, "reason": "another"} for _ in range(3))
    assert tombstones.entries(tombstones.location()) == before == [stone]


def test_the_list_lies_where_it_is_said_else_in_the_store_else_beside_the_work(tmp_path, monkeypatch):
    assert tombstones.location() == str(tmp_path / "tombstones.json")
    monkeypatch.setenv("MASKOCR_STORE", "s3://bucket/store/")
    assert tombstones.location() == "s3://bucket/store/tombstones.json"
    monkeypatch.setenv("MASKOCR_TOMBSTONES", "/elsewhere/list.json")
    assert tombstones.location() == "/elsewhere/list.json"


@pytest.mark.parametrize(
    "content", ["", "[]", '{"format_version": 9, "tombstones": []}', '{"format_version": 1, "tombstones": [{}]}']
)
def test_a_damaged_list_lets_nothing_be_read_and_nothing_be_added(content, tmp_path):
    (tmp_path / "tombstones.json").write_text(content)
    for attempt in (tombstones.load, lambda: tombstones.add([tombstones.entry("asked", "archive")])):
        with pytest.raises(ValueError, match="is no list of tombstones.*restore it"):
            attempt()
    assert (tmp_path / "tombstones.json").read_text() == content


def test_many_writers_at_once_all_succeed():
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: tombstones.add([tombstones.entry("asked", str(number))]), range(24)))
    assert {entry["digest"] for entry in tombstones.entries(tombstones.location())} == {
        tombstones.digest(str(number)) for number in range(24)
    }


def test_a_killed_writer_leaves_the_list_whole(tmp_path):
    tombstones.add([tombstones.entry("asked", "archive")])
    before = (tmp_path / "tombstones.json").read_bytes()

    def killed(content):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.replace(tombstones.location(), killed)
    assert (tmp_path / "tombstones.json").read_bytes() == before
    tombstones.add([tombstones.entry("asked", "factory")])
    assert len(json.loads((tmp_path / "tombstones.json").read_text())["tombstones"]) == 2


@pytest.mark.services
def test_in_s3_two_writers_at_once_both_succeed_and_every_version_of_an_object_is_erased(tmp_path, monkeypatch):
    with seaweed(tmp_path / "s3") as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MASKOCR_STORE", "s3://lines-bucket/store")
        assert not tombstones.load()
        for _ in range(3):
            with ThreadPoolExecutor(2) as pool:
                done = pool.map(lambda name: tombstones.add([tombstones.entry("asked", name)]), ("archive", "factory"))
                list(done)
        assert tombstones.load().hides(TABLE).all() and len(tombstones.entries(tombstones.location())) == 2

        client = server.client()
        try:
            client.put_bucket_versioning(Bucket="other-bucket", VersioningConfiguration={"Status": "Enabled"})
            versioned = True
        except client.exceptions.ClientError:  # an identity that may not change buckets
            versioned = False
        for key in ("a", "a/longer", "a"):
            server.put(f"s3://other-bucket/{key}", b"content")
        storage.erase("s3://other-bucket/a")
        storage.erase("s3://other-bucket/absent")
        left = client.list_object_versions(Bucket="other-bucket", Prefix="a")
        assert [found["Key"] for found in left.get("Versions", ())] == ["a/longer"] and not left.get("DeleteMarkers")
        assert versioned
