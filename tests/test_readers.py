"""Line images, places, texts, units and the outline; archives, pages and Parquet have files of their own."""

import datetime
import os
import pickle
import re
import shutil
import unicodedata
from collections import Counter

import numpy as np
import pytest
import rendered
from hypothesis import given, settings
from hypothesis import strategies as st

from maskocr_core import config
from maskocr_core.data import lines, readers
from maskocr_core.data.readers import rows as row_rules
from maskocr_core.data.readers.units import Entry, Item, pack, unit_of_items

DATA = config.load("smoke").data


def data(**changes):
    return DATA.model_copy(update=changes)


def read_all(uri, settings=DATA):
    """(rows, refusals by item) of everything below a URI."""
    rows, refused = [], {}
    for unit in readers.plan(str(uri), settings):
        for found in readers.read(unit, settings):
            if isinstance(found, readers.Refused):
                assert "\n" not in found.reason and len(found.reason) > 10
                refused[found.item] = found.reason
            else:
                rows.append(found)
    return rows, refused


def line(number=0):
    return rendered.png(np.full((8, 9), number % 251, np.uint8)) + number.to_bytes(4)


def put(root, name, content=b""):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# Places


@pytest.mark.parametrize(
    ("name", "document", "page", "split"),
    [
        ("1.png", "yours", "yours", None),
        ("a/1.png", "a", "a", None),
        ("a/p1/1.png", "a", "a/p1", None),
        ("train/a/p1/1.png", "a", "train/a/p1", "train"),
        ("Validation/1.png", "Validation", "Validation", "val"),
        ("a/test/1.png", "a", "a/test", None),
    ],
)
def test_document_page_and_split_follow_from_the_folders(tmp_path, name, document, page, split):
    put(tmp_path, f"yours/{name}", line())
    put(tmp_path, f"yours/{name[:-4]}.gt.txt", "text")
    (row,), _ = read_all(tmp_path / "yours")
    assert (row["document_id"], row["page_id"], row["split"]) == (document, page, split)
    assert row["source"] == "yours" and row["license"] is None and row["retain_until"] is None


def test_a_row_has_every_column_of_the_schema_and_its_split(tmp_path):
    put(tmp_path, "a/1.png", line())
    (row,), _ = read_all(tmp_path)
    assert set(row) == {*lines.SCHEMA.names, "retain_until", "split"}
    assert row["line_id"] == lines.line_id(row["image"]) and (row["height"], row["width"]) == (8, 9)


def test_the_shares_of_the_splits_are_those_asked_for():
    shares = data(validation_share=0.2, test_share=0.3)
    counts = Counter(readers.split_of(f"document {number}", True, shares) for number in range(4000))
    assert counts["val"] / 4000 == pytest.approx(0.2, abs=0.03)
    assert counts["test"] / 4000 == pytest.approx(0.3, abs=0.03)


# Texts


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("two\nlines", "several lines"),
        ("a\u2028b", "several lines"),
        ("bell \x07", "the control character U\\+0007 at 5"),
        ("a\tb", "U\\+0009"),
        ("\x00", "U\\+0000"),
        ("x" * 2001, "2,001 characters"),
        ("x" * 100_000, "more than the 32,000"),
    ],
)
def test_a_text_that_is_no_line_of_text_is_refused_in_a_sentence(tmp_path, text, reason):
    put(tmp_path, "a/1.png", line(1))
    put(tmp_path, "a/1.txt", text)
    put(tmp_path, "a/2.png", line(2))
    rows, refused = read_all(tmp_path)
    assert len(rows) == 1 and list(refused) == ["a/1.png"]
    assert re.search(reason, refused["a/1.png"]), refused


def test_text_is_composed_and_stripped_and_stays_in_logical_order(tmp_path):
    put(tmp_path, "a/1.png", line())
    put(tmp_path, "a/1.gt.txt", "\ufeff  \u05e9\u05dc\u05d5\u05dd u\u0308ber \r\n")
    (row,), _ = read_all(tmp_path)
    assert row["text"] == "\u05e9\u05dc\u05d5\u05dd \u00fcber"


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_kept_as_nfc_or_refused(text):
    try:
        cleaned = row_rules.clean(text)
    except ValueError as error:
        assert any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text), error
    else:
        assert cleaned == (unicodedata.normalize("NFC", text).strip() or None)


# Line images


def test_what_cannot_be_a_line_is_listed_and_the_rest_goes_on(tmp_path):
    put(tmp_path, "a/1.png", line(1))
    put(tmp_path, "a/2.png", b"no image")
    put(tmp_path, "a/3.png", rendered.png(np.zeros((1200, 40), np.uint8)))
    put(tmp_path, "a/4.txt", "alone")
    put(tmp_path, "a/5.jp2", b"\0")
    put(tmp_path, "a/6.rar", b"\0")
    put(tmp_path, "a/7.png", line(7))
    put(tmp_path, "a/7.txt", "Stra\xdfe".encode("latin-1"))
    put(tmp_path, "a/Thumbs.db", b"\0")
    rows, refused = read_all(tmp_path)
    assert len(rows) == 1
    assert set(refused) == {"a/2.png", "a/3.png", "a/4.txt", "a/5.jp2", "a/6.rar", "a/7.png"}
    assert "cut pages into lines first" in refused["a/3.png"] and "PNG, JPEG" in refused["a/5.jp2"]


def test_a_name_with_control_characters_is_refused_and_can_be_shown(tmp_path):
    put(tmp_path, "a/1.png", line(1))
    put(tmp_path, "a\n<b>/2.png", line(2))
    (tmp_path / os.fsdecode(b"latin-\xe9.png")).write_bytes(line(3))
    rows, refused = read_all(tmp_path)
    assert len(rows) == 1 and set(refused) == {"a\\u000a<b>/2.png", "latin-\\udce9.png"}
    assert all("rename it" in reason for reason in refused.values())


def test_a_file_that_may_not_be_read_is_refused_and_the_rest_goes_on(tmp_path):
    put(tmp_path, "a/1.png", line(1))
    gone = put(tmp_path, "a/2.png", line(2))
    units = readers.plan(str(tmp_path), DATA)
    gone.unlink()
    found = [row for unit in units for row in readers.read(unit, DATA)]
    assert [isinstance(row, readers.Refused) for row in found] == [False, True]
    assert "cannot be read" in found[1].reason


@pytest.mark.parametrize("files", [["a/1.txt"], ["a/readme.md"], ["a/1.jp2"], ["a/1.zip"], ["mets.xml.bak"]])
def test_a_folder_in_which_nothing_can_be_a_line_ends_with_its_name(tmp_path, files):
    for name in files:
        put(tmp_path, f"yours/{name}", b"x")
    with pytest.raises(ValueError, match="yours: holds neither Parquet files nor line images.*PAGE XML"):
        readers.plan(str(tmp_path / "yours"), DATA)


# Units


def test_units_are_small_to_send_and_read_the_same_twice(tmp_path):
    rendered.documents(tmp_path / "pairs", documents=6, lines=3)
    units = readers.plan(str(tmp_path / "pairs"), data(shard_lines=5))
    assert units == readers.plan(str(tmp_path / "pairs"), data(shard_lines=5))
    assert len(units) > 2 and len({unit.name for unit in units}) == len(units)
    for unit in units:
        assert unit.lines <= 5 and unit.name.isalnum() and len(unit.name) >= 16
        again = pickle.loads(pickle.dumps(unit))
        assert list(readers.read(again, DATA)) == list(readers.read(unit, DATA))


def test_a_changed_file_changes_the_name_of_its_unit_alone(tmp_path):
    rendered.documents(tmp_path / "pairs", documents=12, lines=2)
    before = readers.plan(str(tmp_path / "pairs"), data(shard_lines=4))
    (tmp_path / "pairs/document-05/000.gt.txt").write_text("Another text.")
    after = readers.plan(str(tmp_path / "pairs"), data(shard_lines=4))
    assert len({unit.name for unit in before} - {unit.name for unit in after}) == 1


def items_of(sizes: dict[str, int]) -> list[Item]:
    names = [f"{document}/{number:03}.png" for document, size in sizes.items() for number in range(size)]
    return [Item("line", name, (Entry(name, 1, name),)) for name in names]


DOCUMENTS = st.dictionaries(
    st.text("abcdefghij", min_size=3, max_size=6), st.integers(1, 40), min_size=60, max_size=120
)


@settings(max_examples=15, deadline=None)
@given(DOCUMENTS, st.sets(st.text("abcdefghij", min_size=3, max_size=6), min_size=1, max_size=2), st.integers(1, 40))
def test_new_documents_leave_most_units_as_they_are(documents, added, size):
    full = 64

    def names(sizes):
        units = [unit_of_items(found, "yours", None) for found in pack(items_of(sizes), full)]
        assert all(unit.lines <= full for unit in units)
        in_units = [item.name for unit in units for item in unit.items]
        assert sorted(in_units) == sorted(item.name for item in items_of(sizes))
        return [unit.name for unit in units]

    before = names(documents)
    after = names({name: size for name in added} | documents)
    assert len(set(before) - set(after)) <= max(10 * len(added), 0.5 * len(before))


def test_adding_one_document_to_a_thousand_changes_a_few_units_in_the_mean():
    documents = {f"document-{number:04}": 10 + number % 7 for number in range(1000)}
    before = {unit_of_items(found, "s", None).name for found in pack(items_of(documents), 64)}
    changed = []
    for number in range(10):
        more = documents | {f"document-{number * 100:04}-b": 12}
        after = {unit_of_items(found, "s", None).name for found in pack(items_of(more), 64)}
        changed.append(len(before - after))
    assert len(before) > 150 and np.mean(changed) < 5


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["", "a/", "a/p/", "b/"]), st.integers(0, 500), st.integers(1, 30)), max_size=60
    ),
    st.integers(1, 20),
)
def test_every_item_is_in_one_unit_and_only_a_large_item_makes_a_large_unit(drawn, full):
    sizes = {f"{folder}{name}.xml": size for folder, name, size in drawn}
    items = [Item("page", name, lines=size) for name, size in sizes.items()]
    packs = list(pack(items, full))
    assert sorted(item.name for found in packs for item in found) == sorted(item.name for item in items)
    assert all(sum(item.lines for item in found) <= full or len(found) == 1 for found in packs)


# The outline


def test_the_outline_says_what_is_there_and_writes_nothing(tmp_path):
    rendered.documents(tmp_path / "yours", documents=4, lines=3)
    rendered.parquet(tmp_path / "yours/train.parquet", rendered.rows(documents=2, lines=3))
    put(tmp_path, "yours/readme.txt", "x")
    put(tmp_path, "yours/z/1.png", b"no image")
    before = sorted(tmp_path.rglob("*"))
    outline = readers.outline(str(tmp_path / "yours"), DATA)
    assert sorted(tmp_path.rglob("*")) == before
    assert outline.files == 27 and outline.sampled == 18 and outline.refused == 2 and outline.lines == 20
    assert outline.forms == {"Parquet files": 1, "line images with text": 12, "line images without text": 1}
    assert outline.columns["page_id"] == "page" and outline.columns["image"] == "image"
    assert outline.splits == {"labelled, split by document": 12, "train (named by the data)": 6}
    said = outline.render()
    assert all(isinstance(text, str) and "\n" not in text for text in said)
    assert any("readme.txt" in text for text in said) and any("page_id ← page" in text for text in said)


def test_the_outline_reads_no_more_than_its_sample(tmp_path):
    rendered.parquet(tmp_path / "a.parquet", rendered.rows(documents=3, lines=10))
    assert readers.outline(str(tmp_path), DATA, sample=7).sampled == 7


# Dates


@pytest.mark.parametrize(
    "value",
    [
        datetime.date(2031, 5, 1),
        datetime.datetime(2031, 5, 1, 12),
        "2031-05-01",
        "2031-05-01T00:00:00Z",
        " 2031-05-01 ",
    ],
)
def test_a_date_of_retention_is_read_in_any_usual_form(value):
    row = row_rules.row("x", line(), None, row_rules.Place("p", "d", "s"), retain_until=value)
    assert row["retain_until"] == datetime.date(2031, 5, 1)


def test_a_date_of_retention_that_is_none_is_refused():
    refused = row_rules.row("x", line(), None, row_rules.Place("p", "d", "s"), retain_until="soon")
    assert "'soon' is no date: write it as YYYY-MM-DD" in refused.reason


# S3


def everything(root):
    """A folder of every form: pairs, a page, Parquet, and archives of each."""
    import pages

    rendered.documents(root / "pairs", documents=2, lines=2)
    image, found = pages.page(lines=2)
    put(root, "book/0001.png", rendered.png(image))
    put(root, "book/0001.xml", pages.page_xml(image, found))
    rendered.parquet(root / "a.parquet", rendered.rows(documents=2, lines=2, seed=5))
    for kind in ("zip", "gztar"):
        rendered.documents(root / "packing/deep", documents=2, lines=2, seed=7 + len(kind))
        shutil.make_archive(str(root / f"packed-{kind}"), kind, root / "packing")
        shutil.rmtree(root / "packing")
    return root


@pytest.mark.services
def test_s3_gives_the_rows_that_the_folder_gives(at_s3, tmp_path):
    folder = everything(tmp_path / "yours")
    uri = at_s3.put_folder(folder, "s3://lines-bucket/some/yours")
    assert read_all(uri) == read_all(folder)
    assert read_all(f"{uri}/packed-zip.zip") == read_all(folder / "packed-zip.zip")
    assert len(read_all(uri)[0]) == 18


@pytest.mark.services
@pytest.mark.filterwarnings("ignore")
def test_a_storage_that_falls_silent_ends_the_run_and_refuses_nothing(at_s3, tmp_path, monkeypatch):
    uri = at_s3.put_folder(everything(tmp_path / "yours"), "s3://lines-bucket/silent/yours")
    units = readers.plan(uri, DATA)
    for key in at_s3.keys("lines-bucket", "silent/"):
        at_s3.client().delete_object(Bucket="lines-bucket", Key=key)
    for unit in units:
        with pytest.raises(ValueError, match="run ingest again"):
            list(readers.read(unit, DATA))
