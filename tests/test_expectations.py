import json
import re

import pandas as pd
import pytest

from maskocr_core.services import expectations

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def frame():
    """200 sound lines: a quarter unlabelled, pages whole in one split."""
    number = pd.Series(range(200))
    split = number.map(lambda i: ("train", "val", "test", "unlabeled")[i // 50])
    labelled = split != "unlabeled"
    return pd.DataFrame({
        "line_id": number.map("{:032x}".format), "split": split, "source": "letters", "document_id": "d" + (number // 50).astype(str),
        "page_id": "p" + (number // 10).astype(str), "height": 48, "width": 600, "ink": 0.15, "contrast": 0.6,
        "characters": pd.Series(40, number, "Int32").where(labelled),
        "pixels_per_character": pd.Series(15.0, number, "Float64").where(labelled),
    })


def failed(result):
    return {(one["expectation"].removeprefix("expect_column_values_to_"), one["column"])
            for one in result["expectations"] if not one["success"]}


def test_sound_lines_meet_every_expectation_and_the_answer_is_json(frame, tmp_path):
    result = expectations.check(frame, tmp_path)
    assert result["success"] and not failed(result)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@pytest.mark.parametrize(("column", "rows", "value", "expectation"), [
    ("line_id", 2, "f" * 32, "be_unique"),
    ("document_id", 1, None, "not_be_null"),
    ("split", 1, "trian", "be_in_set"),
    ("height", 1, 4000, "be_between"),
    ("width", 1, 3, "be_between"),
    ("characters", 1, 900, "be_between"),
    ("ink", 20, 0.7, "be_between"),
    ("contrast", 20, 0.01, "be_between"),
    ("pixels_per_character", 20, 0.5, "be_between"),
])
def test_an_unsound_column_is_named(frame, tmp_path, column, rows, value, expectation):
    frame.loc[frame.index[:rows], column] = value
    result = expectations.check(frame, tmp_path)
    assert not result["success"] and failed(result) == {(expectation, column)}


@pytest.mark.parametrize("column", ["ink", "contrast"])
def test_a_few_odd_lines_do_not_condemn_a_collection(frame, tmp_path, column):
    frame.loc[frame.index[:5], column] = 0.0
    result = expectations.check(frame, tmp_path)
    assert result["success"]
    (percent,) = {one["unexpected_percent"] for one in result["expectations"] if one["column"] == column}
    assert percent == pytest.approx(2.5)


def test_a_page_torn_between_training_and_test_is_a_leak(frame, tmp_path):
    frame.loc[frame["split"] == "test", ["page_id", "document_id"]] = frame.loc[0, ["page_id", "document_id"]].tolist()
    assert failed(expectations.check(frame, tmp_path)) == {("be_null", "page_also_in")}


def test_unlabelled_lines_beside_test_lines_are_no_leak(frame, tmp_path):
    frame.loc[frame["split"] == "unlabeled", "page_id"] = frame["page_id"][frame["split"] == "test"].iloc[0]
    assert expectations.check(frame, tmp_path)["success"]


def test_lines_without_any_label_are_checked_too(frame, tmp_path):
    assert expectations.check(frame[frame["split"] == "unlabeled"], tmp_path)["success"]


def test_the_pages_load_nothing_from_anywhere_and_tell_what_failed(frame, tmp_path):
    frame.loc[0, "height"] = 4000
    expectations.check(frame, tmp_path)
    pages = {page.relative_to(tmp_path).parts[0]: page.read_text("utf-8") for page in tmp_path.rglob("*.html")}
    assert set(pages) == {"index.html", "validations", "expectations"}
    for page in pages.values():
        assert not re.search(r"<(script|link|iframe|img|object|embed)\b|@import|url\(", page, re.IGNORECASE)
        assert "<style>" in page
    assert "4000" in pages["validations"] and "Failed" in pages["validations"]


def test_every_link_of_the_index_leads_to_a_page(frame, tmp_path):
    expectations.check(frame, tmp_path)
    links = re.findall(r'href="([^"]+)"', (tmp_path / "index.html").read_text("utf-8"))
    assert len(links) == 2 and all((tmp_path / link).is_file() for link in links)


def test_the_check_prints_nothing(frame, tmp_path, capfd):
    expectations.check(frame, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_missing_column_is_named(frame, tmp_path):
    with pytest.raises(ValueError, match="lacks contrast"):
        expectations.check(frame.drop(columns="contrast"), tmp_path)


def test_no_lines_are_refused_with_the_mend(frame, tmp_path):
    with pytest.raises(ValueError, match="ingest"):
        expectations.check(frame.iloc[:0], tmp_path)
