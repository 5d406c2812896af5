import json
import re
import subprocess
import sys

import pandas as pd
import pyarrow as pa
import pytest
from conftest import REPOSITORY

from maskocr_core.services import expectations

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def frame():
    """200 sound lines: a quarter unlabelled."""
    number = pd.Series(range(200))
    split = number.map(lambda i: ("train", "val", "test", "unlabeled")[i // 50])
    labelled = split != "unlabeled"
    return pd.DataFrame({
        "line_id": number.map("{:032x}".format), "split": split, "source": "letters", "document_id": "d" + (number // 50).astype(str),
        "page_id": "p" + (number // 10).astype(str), "height": 48, "width": 600, "ink": 0.15, "contrast": 0.6, "sharpness": 0.8,
        "along_width": 0.7, "characters": pd.Series(40, number, "Int32").where(labelled),
        "pixels_per_character": pd.Series(15.0, number, "Float64").where(labelled),
        "script_count": pd.Series(1, number, "Int32").where(labelled), "times_read": 1,
        "page_also_in": pd.Series(None, number, "str"), "image_also_in": pd.Series(None, number, "str"),
    })  # fmt: skip


def check(frame, folder, tables=1):
    """The frame in so many tables of the schema that validate gives."""
    types = {column: pa.string() for column in ("document_id", "page_also_in", "image_also_in")}
    table = pa.Table.from_pandas(frame, preserve_index=False)
    for column, type_ in types.items():
        place = table.column_names.index(column)
        table = table.set_column(place, column, table[column].cast(type_))
    size = -(-table.num_rows // tables)
    return expectations.check([table.slice(size * number, size) for number in range(tables)], folder)


def failed(result):
    return {
        (one["expectation"].removeprefix("expect_column_values_to_"), one["column"])
        for one in result["expectations"]
        if not one["success"]
    }


def test_sound_lines_meet_every_expectation_and_the_answer_is_json(frame, tmp_path):
    result = check(frame, tmp_path)
    assert result["success"] and not failed(result)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@pytest.mark.parametrize(
    ("column", "rows", "value", "expectation"),
    [
        ("times_read", 2, 2, "be_between"),
        ("page_also_in", 1, "test", "be_null"),
        ("image_also_in", 1, "test", "be_null"),
        ("document_id", 1, None, "not_be_null"),
        ("split", 1, "trian", "be_in_set"),
        ("height", 1, 4000, "be_between"),
        ("width", 1, 3, "be_between"),
        ("characters", 1, 900, "be_between"),
        ("ink", 20, 0.7, "be_between"),
        ("contrast", 20, 0.01, "be_between"),
        ("sharpness", 20, 0.007, "be_between"),
        ("along_width", 120, -0.4, "be_between"),
        ("script_count", 20, 2, "be_between"),
        ("pixels_per_character", 20, 0.5, "be_between"),
    ],
)
def test_an_unsound_column_is_named(frame, tmp_path, column, rows, value, expectation):
    frame.loc[frame.index[:rows], column] = value
    result = check(frame, tmp_path)
    assert not result["success"] and failed(result) == {(expectation, column)}


@pytest.mark.parametrize("column", ["ink", "contrast"])
def test_a_few_odd_lines_do_not_condemn_a_collection(frame, tmp_path, column):
    frame.loc[frame.index[:5], column] = 0.0
    result = check(frame, tmp_path)
    assert result["success"]
    (percent,) = {one["unexpected_percent"] for one in result["expectations"] if one["column"] == column}
    assert percent == pytest.approx(2.5)


def test_single_lines_may_alternate_along_the_height(frame, tmp_path):
    frame.loc[frame.index[:60], "along_width"] = -0.4
    assert check(frame, tmp_path)["success"]


@pytest.mark.parametrize(("bad", "success"), [(10, True), (11, False)])
def test_mostly_is_meant_of_the_whole_and_not_of_a_chunk(frame, tmp_path, monkeypatch, bad, success):
    frame.loc[frame.index[:bad], "ink"] = 0.7  # 5 and 5.5 % of all, a fifth of the first chunk
    monkeypatch.setattr(expectations, "CHUNK", 50)
    result = check(frame, tmp_path)
    assert result["success"] is success
    (percent,) = {one["unexpected_percent"] for one in result["expectations"] if one["column"] == "ink"}
    assert percent == pytest.approx(bad / 2)


def test_the_size_of_tables_and_chunks_changes_no_answer(frame, tmp_path, monkeypatch):
    frame.loc[frame.index[3:50], "height"] = 4000
    whole = check(frame, tmp_path / "whole")
    monkeypatch.setattr(expectations, "CHUNK", 37)
    assert check(frame, tmp_path / "chunks", tables=7) == whole


def test_memory_does_not_grow_with_the_number_of_lines(tmp_path):
    code = f"""
import resource, sys
sys.path[:0] = [{str(REPOSITORY)!r}]
import numpy as np, pyarrow as pa
from maskocr_core.services import expectations
peaks = []
def tables(lines, size=4096):
    for first in range(0, lines, size):
        if first >= 20480 and not peaks:
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        ids = [f"{{number:032x}}" for number in range(first, first + size)]
        null = pa.nulls(size, pa.string())
        text = {{name: ids for name in ("line_id", "source", "document_id", "page_id")}}
        numbers = {{name: np.full(size, 0.4, np.float32) for name in ("ink", "contrast", "sharpness", "along_width")}}
        counts = {{name: np.full(size, 9, np.int32) for name in ("height", "width", "characters", "pixels_per_character")}}
        ones = {{name: np.ones(size, np.int32) for name in ("script_count", "times_read")}}
        yield pa.table(text | {{"split": ["unlabeled"] * size}} | numbers | counts | ones | {{"page_also_in": null, "image_also_in": null}})
expectations.CHUNK = 16384
assert expectations.check(tables(65536), __import__("pathlib").Path({str(tmp_path)!r}))["success"]
print(peaks[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, after = (int(figure) / 1024 for figure in shown.split())
    assert after - before < 40, "MiB more for four times the lines"


def test_lines_without_any_label_are_checked_too(frame, tmp_path):
    assert check(frame[frame["split"] == "unlabeled"], tmp_path)["success"]


def test_the_pages_load_nothing_from_anywhere_and_tell_what_failed(frame, tmp_path):
    frame.loc[0, "height"] = 4000
    frame.loc[0, "split"] = '<img src=x onerror="alert(1)"><script>alert(2)</script>'
    check(frame, tmp_path)
    pages = {page.relative_to(tmp_path).parts[0]: page.read_text("utf-8") for page in tmp_path.rglob("*.html")}
    assert set(pages) == {"index.html", "validations", "expectations"}
    for page in pages.values():
        assert not re.search(
            r"<(script|link|iframe|img|object|embed)\b|@import|url\(|<[^>]*\son\w+=", page, re.IGNORECASE
        )
        assert "<style>" in page
    assert "4000" in pages["validations"] and "Failed" in pages["validations"]


def test_every_link_of_the_index_leads_to_a_page(frame, tmp_path):
    check(frame, tmp_path)
    links = re.findall(r'href="([^"]+)"', (tmp_path / "index.html").read_text("utf-8"))
    assert len(links) == 2 and all((tmp_path / link).is_file() for link in links)


def test_the_check_prints_nothing(frame, tmp_path, capfd):
    check(frame, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_missing_column_is_named(frame, tmp_path):
    with pytest.raises(ValueError, match="lacks contrast"):
        check(frame.drop(columns="contrast"), tmp_path)


def test_no_lines_are_refused_with_the_mend(frame, tmp_path):
    with pytest.raises(ValueError, match="ingest"):
        check(frame.iloc[:0], tmp_path)
