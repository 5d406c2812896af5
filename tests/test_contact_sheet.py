import re

import numpy as np
import pyarrow as pa
import pytest
import rendered

from maskocr_core import artifacts
from maskocr_core.artifacts import Artifact
from maskocr_core.data import lines
from maskocr_core.data.qa import contact_sheet

HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>\u202eevil\x07'


def row(number, image=None, *, kind="blank", source="letters", document="d", reasons="The image is blank."):
    image = rendered.png(np.full((48, 300), number % 250, np.uint8)) if image is None else image
    return {
        "line_id": lines.line_id(image),
        "page_id": "1",
        "document_id": document,
        "source": source,
        "image": image,
        "height": 48,
        "width": 300,
        "text": None,
        "kinds": [kind],
        "reasons": reasons,
    }


def sheet(folder, rows, refused=()):
    """The page and its `shown.json` for these bad lines, in shards of 40, and these refused items."""
    quarantined = []
    for number in range(0, len(rows), 40):
        shard = f"unlabeled/part-{number:03}.parquet"
        lines.write(pa.Table.from_pylist(rows[number : number + 40], schema=lines.SCHEMA), folder / "lines" / shard)
        quarantined.append((shard, pa.Table.from_pylist(rows[number : number + 40])))
    schema = pa.schema([("item", pa.string()), ("reason", pa.string())])
    lines.write(pa.Table.from_pylist(list(refused), schema=schema), folder / "lines/refused.parquet")
    artifacts.finish(folder / "lines", kind="lines", config={}, metrics={})
    contact_sheet.write(Artifact(folder / "lines"), quarantined, folder)
    return (folder / "contact_sheet.html").read_text(), set(_shown(folder))


def _shown(folder):
    import json

    (ids,) = json.loads((folder / "shown.json").read_text()).values()
    return ids


def test_each_kind_is_counted_and_its_lines_are_shown_as_pictures(tmp_path):
    rows = [row(number) for number in range(3)]
    rows += [row(number, kind="inverted", reasons="88% is dark.") for number in range(10, 15)]
    page, shown = sheet(tmp_path, rows)
    assert "Inverted: 5 lines" in page and "Blank: 3 lines" in page and page.index("Inverted") < page.index("Blank")
    assert page.count("data:image/webp;base64,") == 8 and "88% is dark." in page
    assert shown == {one["line_id"] for one in rows}


def test_of_many_lines_a_few_of_every_source_are_shown(tmp_path):
    rows = [row(number, source="large") for number in range(100)] + [row(200, source="small")]
    page, shown = sheet(tmp_path, rows)
    assert "Blank: 101 lines" in page and "large: 100, small: 1" in page
    assert page.count("<figure>") == contact_sheet.PER_KIND == len(shown)
    assert rows[-1]["line_id"] in shown


def test_the_ids_on_the_page_are_the_ids_that_are_said_to_be_shown(tmp_path):
    rows = [row(number, kind=("blank", "broken")[number % 2]) for number in range(90)]
    copy = {"item": "ab" * 16, "reason": "the same image as another line of page 1"}
    page, shown = sheet(tmp_path, rows, [copy, {"item": "scan.png", "reason": "no readable image"}])
    assert set(re.findall(r"\b[0-9a-f]{32}\b", page)) == shown and copy["item"] in shown


def test_a_line_without_a_picture_is_listed_with_its_reason(tmp_path):
    page, shown = sheet(tmp_path, [row(0, b"no image", kind="broken", reasons="no readable image")])
    assert "no picture" in page and "no readable image" in page and "<img" not in page and len(shown) == 1


def test_what_ingest_refused_is_grouped_by_reason_without_its_particulars(tmp_path):
    refused = [{"item": f"{n}.png", "reason": f"is {n} × 9 px: cut pages into lines first"} for n in range(40)]
    refused.append({"item": "a.png", "reason": "no text beside it"})
    page, _ = sheet(tmp_path, [], refused)
    assert "Is: 40" in page and "and 16 more" in page and "No text beside it: 1" in page


def test_the_pictures_together_stay_below_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(contact_sheet, "MAX_PICTURES", 20_000)
    random = np.random.default_rng(0)
    noise = [rendered.png(random.integers(0, 255, (48, 600), dtype=np.uint8)) for _ in range(20)]
    page, shown = sheet(tmp_path, [row(0, image) for image in noise])
    assert 0 < page.count("<img") < 20 and len(page) < 50_000 and len(shown) == 20


def test_hostile_names_and_reasons_do_nothing(tmp_path):
    rows = [row(0, kind=HOSTILE, source=HOSTILE, document=HOSTILE, reasons=HOSTILE)]
    page, _ = sheet(tmp_path, rows, [{"item": HOSTILE, "reason": HOSTILE}])
    assert "<script" not in page and "<img src=x" not in page and "&lt;script&gt;" in page
    assert "\u202e" not in page and "\x07" not in page and "[U+202E]" in page
    assert "default-src 'none'" in page


def test_the_same_lines_give_the_same_page(tmp_path):
    rows = [row(number) for number in range(60)]
    assert sheet(tmp_path / "one", rows) == sheet(tmp_path / "another", rows)


def test_nothing_refused_is_said(tmp_path):
    page, shown = sheet(tmp_path, [])
    assert "Nothing" in page and not shown


@pytest.mark.browser
def test_a_browser_asks_for_nothing_but_the_page_itself(tmp_path):
    from browsing import opened

    sheet(tmp_path, [row(0, kind=HOSTILE, reasons=HOSTILE), row(1)], [{"item": HOSTILE, "reason": HOSTILE}])
    asked, said = opened(tmp_path / "contact_sheet.html")
    assert asked == [(tmp_path / "contact_sheet.html").as_uri()] and not said
