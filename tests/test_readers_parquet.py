"""Parquet files, Hugging Face's and our own, and those that attack."""

import datetime
import json
import re
import subprocess
import sys
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rendered
from hypothesis import given, settings
from hypothesis import strategies as st
from test_readers import DATA, data, line, put, read_all

from maskocr_core.data import lines, readers
from maskocr_core.data.readers import parquet_pages
from maskocr_core.data.readers.units import Unreadable


def table(**columns) -> pa.Table:
    """Rows with an image, a page and a document each, and the given columns, which say how many."""
    count = len(next(iter(columns.values())))
    usual = {"image": [line(number) for number in range(count)], "page": ["p"] * count, "doc": ["d"] * count}
    return pa.table(usual | columns)


def write(path, content: pa.Table, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path, **options)
    return path


# What is read


def test_columns_of_all_kinds_come_out_as_they_went_in(tmp_path):
    content = table(
        text=pa.array(["a", None, "c"]).dictionary_encode(),
        source=["s", "t", None],
        order=pa.array([3.0, None, float("nan")]),
        license=["CC0-1.0", None, None],
        retain_until=pa.array([datetime.date(2030, 1, 2), None, datetime.date(2031, 1, 2)]),
        split=["train", "dev", None],
    )
    write(tmp_path / "test-0.parquet", content)
    rows, _ = read_all(tmp_path)
    assert [row["text"] for row in rows] == ["a", None, "c"]
    assert [row["source"] for row in rows] == ["s", "t", "test-0.parquet"]
    assert [row["order"] for row in rows] == [3, None, None]
    assert [row["license"] for row in rows] == ["CC0-1.0", None, None]
    assert [row["retain_until"] for row in rows] == [datetime.date(2030, 1, 2), None, datetime.date(2031, 1, 2)]
    assert [row["split"] for row in rows] == ["train", "unlabeled", "test"]


def test_an_order_that_is_none_is_refused_and_not_lost_in_silence(tmp_path):
    write(tmp_path / "a.parquet", table(order=["7", "-1", "2.5", "soon", "-3", "4294967296"]))
    rows, refused = read_all(tmp_path)
    assert [row["order"] for row in rows] == [7, None]
    assert [f"a.parquet:{number}" for number in (2, 3, 4, 5)] == list(refused)
    assert all("is no whole number from 0 on" in reason for reason in refused.values())


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_images_of_each_binary_type_are_read(tmp_path, kind):
    images = pa.array([line(1), line(2)]).cast(kind) if kind != pa.binary_view() else pa.array([line(1), line(2)], kind)
    write(tmp_path / "a.parquet", table(image=images))
    assert [row["image"] for row in read_all(tmp_path)[0]] == [line(1), line(2)]


@pytest.mark.parametrize("value", [datetime.datetime(2030, 1, 2, 3), "2030-01-02"])
def test_a_date_of_retention_may_be_a_timestamp_or_a_string_under_any_name(tmp_path, value):
    write(tmp_path / "a.parquet", table(until=[value]))
    mapped = data(columns={**DATA.columns, "retain_until": "until"})
    assert read_all(tmp_path, mapped)[0][0]["retain_until"] == datetime.date(2030, 1, 2)


def hugging_face(name="image", images=None) -> pa.Table:
    structs = [{"bytes": image, "path": "x/1.png"} for image in images or [line(1), line(2)]]
    features = {name: {"_type": "Image"}, "text": {"dtype": "string", "_type": "Value"}}
    content = pa.table({name: structs, "text": ["a", "b"], "page": ["p", "p"], "doc": ["d", "d"]})
    return content.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


@pytest.mark.parametrize("name", ["image", "im"])
def test_hugging_face_images_are_found_by_their_features(tmp_path, name):
    write(tmp_path / "data/train-00000-of-00001.parquet", hugging_face(name))
    rows, refused = read_all(tmp_path)
    assert [row["image"] for row in rows] == [line(1), line(2)] and not refused
    assert {row["split"] for row in rows} == {"train"}


def test_an_image_that_is_only_a_path_is_refused_and_not_followed(tmp_path):
    write(tmp_path / "a.parquet", hugging_face(images=[line(1), None]))
    rows, refused = read_all(tmp_path)
    assert len(rows) == 1 and "a path alone is not followed" in refused["a.parquet:1"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.parquet", "train"),
        ("default/validation/0000.parquet", "val"),
        ("a/test-1.parquet", "test"),
        ("a/b.parquet", None),
    ],
)
def test_a_split_may_be_named_by_file_or_folder(tmp_path, name, split):
    write(tmp_path / name, table(text=["a"]))
    assert read_all(tmp_path)[0][0]["split"] == split


def test_units_are_ranges_of_row_groups_and_hold_every_row_once(tmp_path):
    write(tmp_path / "a.parquet", table(text=[str(number) for number in range(50)]), row_group_size=4)
    write(tmp_path / "b.parquet", table(text=["x"]))
    small = data(shard_lines=10)
    units = readers.plan(str(tmp_path), small)
    assert [unit.lines for unit in units] == [8] * 5 + [10, 1]
    rows = [row for unit in units[:-1] for row in readers.read(unit, small)]
    assert [row["text"] for row in rows] == [str(number) for number in range(50)]
    write(tmp_path / "c.parquet", table(text=["y"]))
    assert {unit.name for unit in units} < {unit.name for unit in readers.plan(str(tmp_path), small)}


def test_a_refused_row_is_named_by_its_place_in_the_file(tmp_path):
    content = table(image=[line(1), b"x", line(3), b"y"])
    write(tmp_path / "a.parquet", content, row_group_size=1)
    assert set(read_all(tmp_path, data(shard_lines=1))[1]) == {"a.parquet:1", "a.parquet:3"}


# What is refused


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"split": ["holdout"]}, "'holdout' in column 'split' is none of train.*rename it"),
        ({"page": [None]}, "names no page or no document"),
        ({"doc": pa.array([None], pa.string())}, "names no page or no document"),
        ({"page": ["a\x00b"]}, "name of its page has control characters"),
        ({"doc": ["x" * 9_000]}, "its document_id has 9,000 bytes"),
        ({"doc": ["x" * 1_001]}, "1,001 characters"),
        ({"text": ["two\nlines"]}, "several lines"),
        ({"retain_until": ["soon"]}, "'soon' is no date"),
        ({"image": pa.array([None], pa.binary())}, "holds no image"),
        ({"image": [bytes(9 << 20)]}, "its image has 9,437,184 bytes"),
        ({"text": pa.array([b"\xff\xfe"]).view(pa.string())}, "its text cannot be read"),
    ],
)
def test_a_row_that_is_no_line_is_refused_in_a_sentence(tmp_path, columns, reason):
    good = table(text=["good"])
    bad = table(**{"image": [line(7)]} | columns)
    write(tmp_path / "a.parquet", good)
    write(tmp_path / "b.parquet", bad)
    rows, refused = read_all(tmp_path)
    assert len(rows) == 1 and list(refused) == ["b.parquet:0"]
    assert re.search(reason, refused["b.parquet:0"]), refused


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            lambda: table(text=["a"]).drop_columns(["page"]),
            "has no column 'page' for page_id; name yours with data.columns=",
        ),
        (lambda: table(text=["a"]).drop_columns(["image"]), "taken for a side table"),
        (lambda: table(image=[["nested"]]), "of type list<element: string>, which cannot be the image"),
        (lambda: table(text=[["nested"]]), "which cannot be the text of a line; name another"),
        (lambda: table(retain_until=[7]), "which cannot be the retain_until"),
        (lambda: table(image=["a string"]), "of type string, which cannot be the image"),
    ],
)
def test_a_file_of_other_columns_is_refused_and_the_others_are_read(tmp_path, content, reason):
    write(tmp_path / "a.parquet", content())
    with pytest.raises(ValueError):
        readers.plan(str(tmp_path), DATA)
    write(tmp_path / "b.parquet", table(text=["a"]))
    rows, refused = read_all(tmp_path)
    assert len(rows) == 1 and list(refused) == ["a.parquet"] and reason in refused["a.parquet"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PAR1",
        b"x" * 100,
        b"PAR1" + b"x" * 50 + b"\xff\xff\xff\x7fPAR1",
        b"PAR1" + b"x" * 50 + b"\x20\x00\x00\x00PAR1",
    ],
)
def test_a_file_that_is_no_parquet_is_refused_and_the_others_are_read(tmp_path, content):
    put(tmp_path, "a.parquet", content)
    write(tmp_path / "b.parquet", table(text=["a"]))
    rows, refused = read_all(tmp_path)
    assert len(rows) == 1 and list(refused) == ["a.parquet"]


def test_one_broken_row_group_is_refused_and_the_others_are_read(tmp_path):
    content = table(
        image=[np.random.default_rng(number).bytes(3000) if number % 4 else line(number) for number in range(16)]
    )
    path = write(tmp_path / "a.parquet", content, row_group_size=4, write_page_checksum=True, use_dictionary=False)
    chunk = pq.ParquetFile(path).metadata.row_group(2).column(0)
    whole = bytearray(path.read_bytes())
    whole[chunk.data_page_offset + chunk.total_compressed_size - 500] ^= 1
    path.write_bytes(whole)
    rows, refused = read_all(tmp_path)
    assert [row["image"] for row in rows] == [line(number) for number in (0, 4, 12)]
    assert "the rows cannot be read (" in refused["a.parquet:8-11"]


class Strange(pa.ExtensionType):
    def __init__(self):
        super().__init__(pa.string(), "tests.strange")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        raise AssertionError("nobody asks an extension type what it is")


@pytest.mark.parametrize("registered", [False, True])
def test_an_extension_type_in_the_embedded_schema_is_read_as_what_it_stores(tmp_path, registered):
    write(tmp_path / "a.parquet", table(text=pa.ExtensionArray.from_storage(Strange(), pa.array(["a"]))))
    if registered:
        pa.register_extension_type(
            type("Kept", (Strange,), {"__arrow_ext_deserialize__": classmethod(lambda cls, *_: cls())})()
        )
    try:
        assert [row["text"] for row in read_all(tmp_path)[0]] == ["a"]
    finally:
        if registered:
            pa.unregister_extension_type("tests.strange")


# Bombs

MEASURED = (
    "import resource, sys\nfrom maskocr_core import config\nfrom maskocr_core.data import readers\n"
    "data = config.load('smoke').data\n"
    "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
    "rows, reasons, before = 0, {}, peak()\n"
    "for unit in readers.plan(sys.argv[1], data):\n"
    "    for row in readers.read(unit, data):\n"
    "        if isinstance(row, readers.Refused): reasons[row.item] = row.reason\n"
    "        else: rows += 1\n"
    "import json; print(json.dumps([rows, len(reasons), list(reasons.values())[-1:], peak() - before]))"
)


def measured(folder) -> tuple[int, int, str, int]:
    """(rows, refusals, last reason, MiB by which the peak of the process grew) of reading a folder in its own process."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(folder)], capture_output=True, text=True, check=True, timeout=120
    )
    rows, refused, reasons, grown = json.loads(done.stdout)
    return rows, refused, "".join(reasons), grown


@pytest.mark.parametrize("embedded", [True, False])
def test_one_value_a_hundred_thousand_times_is_left_early_in_little_memory(tmp_path, embedded):
    """A megabyte that a dictionary makes 105 GB of: the footer declares a megabyte."""
    value = np.random.default_rng(0).bytes(1 << 20)
    rows = 105_000
    columns = {
        "image": pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([value])),
        "page": pa.array(["p"] * rows),
        "doc": pa.array(["d"] * rows),
    }
    path = write(
        tmp_path / "bomb/a.parquet",
        pa.table(columns),
        dictionary_pagesize_limit=8 << 20,
        row_group_size=1 << 20,
        store_schema=embedded,
    )
    assert path.stat().st_size < 2 << 20
    write(tmp_path / "bomb/b.parquet", table(text=["good"]))
    rows, refused, reason, grown = measured(tmp_path / "bomb")
    assert rows == 1 and refused < 2_000 and "as in a bomb" in reason
    assert grown < 400, f"{grown} MiB"


def test_a_page_that_inflates_beyond_reason_is_refused_by_its_header(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_pages, "MAX_PAGE", 5 << 20)
    path = write(tmp_path / "a.parquet", table(image=[bytes(6 << 20)]), compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 10_000
    write(tmp_path / "b.parquet", table(text=["good"]))
    rows, refused = read_all(tmp_path)
    assert len(rows) == 1 and "has a page of 6,291,466 bytes" in refused["a.parquet:0-0"]


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "PLAIN"])
def test_long_values_that_share_their_beginning_are_read_few_at_a_time(tmp_path, encoding):
    value = np.random.default_rng(0).bytes(4 << 20)
    content = table(image=[value + number.to_bytes(4) for number in range(40)])
    write(
        tmp_path / "bomb/a.parquet",
        content,
        use_dictionary=False,
        column_encoding={"image": encoding},
        compression="zstd",
    )
    rows, refused, _, grown = measured(tmp_path / "bomb")
    assert rows == 0 and refused > 10 and grown < 900, f"{grown} MiB"


def test_a_million_rows_of_nothing_are_refused_by_their_number(tmp_path):
    nothing = pa.nulls(3_000_000, pa.string())
    write(
        tmp_path / "a.parquet",
        pa.table({"image": nothing.cast(pa.binary()), "page": nothing, "doc": nothing}),
        row_group_size=1 << 22,
    )
    write(tmp_path / "b.parquet", table(text=["good"]))
    rows, refused = read_all(tmp_path)
    assert len(rows) == 1 and "claims 3,000,000 rows in" in refused["a.parquet"]


def test_one_giant_row_group_is_read_in_bounded_memory(tmp_path):
    random = np.random.default_rng(0)
    images = [line(number) + random.bytes(8000) for number in range(12_000)]
    write(tmp_path / "giant/a.parquet", table(image=images), row_group_size=1 << 20)
    assert len(readers.plan(str(tmp_path / "giant"), data(shard_lines=100))) == 1
    rows, _, _, grown = measured(tmp_path / "giant")
    assert rows == 12_000 and grown < 90, f"{grown} MiB for a row group of 96 MB"


@pytest.mark.parametrize("header", [b"", b"\xff" * 40, b"\x15\x00\x19\x1c" * 9, b"\x1c" * 50, b"\x05" + b"\x80" * 30])
def test_a_broken_page_header_is_refused(tmp_path, header):
    path = write(tmp_path / "a.parquet", table(text=["a"] * 9))
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
    content = bytearray(path.read_bytes())
    place = min(offset for offset in (chunk.dictionary_page_offset, chunk.data_page_offset) if offset)
    content[place : place + len(header)] = header
    path.write_bytes(content)
    with path.open("rb") as file:
        if header:
            with pytest.raises(Unreadable, match="page"):
                parquet_pages.largest(file, chunk, len(content))
        else:
            assert parquet_pages.largest(file, chunk, len(content)) > 9 * 70


# Anything at all

TEXTS = st.none() | st.text(max_size=12)
SPLITS = st.sampled_from([None, "train", "val", "validation", "dev", "test", "unlabeled"])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(TEXTS, SPLITS), min_size=1, max_size=12))
def test_texts_and_splits_survive_or_are_refused_for_a_control_character(tmp_path_factory, drawn):
    folder = tmp_path_factory.mktemp("round")
    texts, splits = zip(*drawn, strict=True)
    write(folder / "lines.parquet", table(text=pa.array(texts, pa.string()), split=pa.array(splits, pa.string())))
    found = [row for unit in readers.plan(str(folder), DATA) for row in readers.read(unit, DATA)]
    assert len(found) == len(drawn)
    for number, (text, split) in enumerate(drawn):
        row, text = found[number], unicodedata.normalize("NFC", text or "").strip() or None
        if isinstance(row, readers.Refused):
            assert any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in text)
            continue
        assert row["line_id"] == lines.line_id(line(number)) and row["split"] in (
            None,
            "train",
            "val",
            "test",
            "unlabeled",
        )
        assert row["text"] == (None if row["split"] == "unlabeled" else text)
        if text and split in ("train", "val", "test", "unlabeled"):
            assert row["split"] == split


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Small files of several encodings, as bytes."""
    root = tmp_path_factory.mktemp("files")
    made = []
    for number, options in enumerate(
        (
            {},
            {"use_dictionary": False, "compression": "zstd"},
            {"data_page_version": "2.0", "write_page_checksum": True, "compression": "none"},
        )
    ):
        made.append(
            write(
                root / f"{number}.parquet", table(text=["a", None, "c"] * 5), row_group_size=6, **options
            ).read_bytes()
        )
    return made


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2), st.integers(0, 2**31), st.integers(0, 7), st.booleans())
def test_flipped_or_truncated_parquet_never_ends_a_run(tmp_path_factory, files, number, place, bit, truncated):
    root = tmp_path_factory.mktemp("flip")
    content = bytearray(files[number])
    content[place % len(content)] ^= 1 << bit
    put(root, "a.parquet", bytes(content[: place % len(content)] if truncated else content))
    write(root / "b.parquet", table(text=["good"]))
    rows, _ = read_all(root)
    assert any(row["text"] == "good" for row in rows)


def test_rendered_rows_are_read_whole(tmp_path):
    given_rows = rendered.rows(documents=2, lines=2)
    rendered.parquet(tmp_path / "a.parquet", given_rows)
    rows, _ = read_all(tmp_path)
    assert [(row["page_id"], row["document_id"], row["source"], row["order"]) for row in rows] == [
        (row["page"], row["doc"], row["source"], row["order"]) for row in given_rows
    ]
