import io
import json
import re

import numpy as np
import pytest
import rendered
from PIL import Image

from maskocr_core import config, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.data import lines as schema

pytestmark = pytest.mark.filterwarnings("ignore")


def pack(root, *, spoil=lambda rows: None) -> str:
    """A folder with one Parquet file of all splits, its rows spoiled."""
    rows = []
    for seed, (split, documents) in enumerate((("train", 6), ("val", 2), ("test", 2), ("unlabeled", 6))):
        rows += rendered.rows(documents=documents, lines=4, split=split, seed=seed, degrade=0.2)
    spoil(rows)
    rendered.parquet(root / "pack/lines.parquet", rows)
    return str(root / "pack")


def run(root, *overrides, spoil=lambda rows: None) -> Artifact:
    """Ingest and validate such a pack."""
    smoke = config.load("smoke", overrides)
    stages.get("ingest")(smoke, data_uri=pack(root, spoil=spoil), lines_out=root / "lines")
    stages.get("validate")(smoke, lines=root / "lines", validation_out=root / "validation")
    return Artifact(root / "validation")


def blank(row) -> bytes:
    return rendered.png(np.full((row["height"], row["width"]), 240, np.uint8))


def inverted(row) -> bytes:
    return rendered.png(255 - np.asarray(Image.open(io.BytesIO(row["image"]))))


def truncated(row) -> bytes:
    return row["image"][: len(row["image"]) // 2]


BAD = {0: blank, 8: inverted, 16: truncated, 40: blank, 48: inverted, 56: truncated}  # three labelled, three unlabelled


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    """The folder of a run over six bad lines among 64; `bad` is what became of each: line id → how it was spoiled."""
    root, bad = tmp_path_factory.mktemp("spoiled"), {}

    def spoil(rows):
        for place, how in BAD.items():
            # One pixel of its own, or two blank lines of one size would be the same image.
            rows[place]["width"] -= place
            rows[place]["image"] = how(rows[place])
            bad[schema.line_id(rows[place]["image"])] = how
        rows[30]["doc"] = rows[0]["doc"]  # a validation line of a known document

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKOCR_WORK", str(root / "stages"))
        run(root, spoil=spoil)
        smoke = config.load("smoke")
        stages.get("fit")(smoke, lines=root / "lines", validation=root / "validation", selection_out=root / "selection")
    return root, bad


def quarantine(folder) -> dict[str, str]:
    table = schema.read_table(Artifact(folder), "quarantine.parquet")
    return dict(zip(table["line_id"].to_pylist(), table["reasons"].to_pylist(), strict=True))


def test_blank_inverted_and_truncated_lines_are_quarantined_with_their_reasons(spoiled):
    root, bad = spoiled
    found = quarantine(root / "validation")
    assert set(found) == set(bad)
    said = {blank: "The image is blank", inverted: "it is inverted", truncated: "broken PNG image"}
    for identity, how in bad.items():
        assert said[how] in found[identity]
    assert Artifact(root / "validation").metrics["quarantined"] == 6


def test_a_quarantined_line_is_never_selected(spoiled):
    root, bad = spoiled
    selected = set(schema.read_table(Artifact(root / "selection"), "selection.parquet")["line_id"].to_pylist())
    everything = {
        identity
        for split in schema.SPLITS
        for identity in schema.index(Artifact(root / "lines"), split)["line_id"].to_pylist()
    }
    assert set(bad) <= everything and selected == everything - set(bad)


def test_every_line_is_measured_and_a_broken_one_has_no_measurements(spoiled):
    root, bad = spoiled
    table = schema.read_table(Artifact(root / "validation"), "measurements.parquet").to_pylist()
    assert len(table) == 64 == Artifact(root / "validation").metrics["lines"]
    without = {row["line_id"] for row in table if row["ink"] is None}
    assert without == {identity for identity, how in bad.items() if how is truncated}
    assert not {"image", "text"} & set(table[0])


def test_a_document_with_pages_in_two_splits_is_only_noted(spoiled):
    root, _ = spoiled
    validation = Artifact(root / "validation")
    assert validation.metrics["shared_documents"] == 1
    (note,) = validation.read_json("verdict.json")["notes"]
    assert note.startswith("1 documents have lines in more than one labelled split")


def test_the_pages_of_the_report_load_nothing_from_anywhere(spoiled):
    folder = spoiled[0] / "validation/data_docs"
    pages = [page.read_text("utf-8") for page in folder.rglob("*.html")]
    assert (folder / "index.html").is_file() and len(pages) > 2
    loads = re.compile(r"""(?:src\s*=|url\(|@import|<link\b[^>]*href\s*=)\s*["']?\s*(?:https?:)?//""", re.IGNORECASE)
    assert not [found for page in pages for found in loads.findall(page)]
    assert not [page for page in pages if "<script" in page.lower()]


def test_the_links_of_the_index_lead_to_pages(spoiled):
    folder = spoiled[0] / "validation/data_docs"
    links = re.findall(r'href="([^"]+)"', (folder / "index.html").read_text())
    assert links and all((folder / link).is_file() for link in links)


def test_the_report_is_no_part_of_the_data_version(spoiled, tmp_path):
    root, _ = spoiled
    again = tmp_path / "validation"
    stages.get("validate")(config.load("smoke"), lines=root / "lines", validation_out=again)
    assert Artifact(again).version == Artifact(root / "validation").version
    assert json.loads((again / "verdict.json").read_text())["success"] is True


def test_a_page_on_two_sides_of_a_split_fails_by_name(tmp_path):
    def spoil(rows):
        test = next(row for row in rows if row["split"] == "test")
        rows[0] |= {"page": test["page"], "doc": test["doc"]}

    with pytest.raises(ValueError, match=r"1 pages have lines in more than one labelled split") as caught:
        run(tmp_path, spoil=spoil)
    assert "rendered/test/document-00/1" in str(caught.value) and "correct the column 'split'" in str(caught.value)
    assert not (tmp_path / "validation").exists()


def test_an_unlabelled_line_of_a_test_page_is_no_leak(tmp_path):
    def spoil(rows):
        rows[-1]["page"] = next(row["page"] for row in rows if row["split"] == "test")

    assert run(tmp_path, spoil=spoil).metrics["quarantined"] == 0


def test_a_source_that_is_mostly_bad_fails_with_its_worst_lines_and_the_mend(tmp_path):
    spoiled = []

    def spoil(rows):
        for row in rows[-12:]:
            row["source"] = "scans"
        for row in rows[-4:]:
            row["image"] = inverted(row)
            spoiled.append(schema.line_id(row["image"]))

    with pytest.raises(ValueError, match="source scans: 4 of 12 lines are bad") as caught:
        run(tmp_path, spoil=spoil)
    message = str(caught.value)
    assert sum(identity in message for identity in spoiled) == 3 and message.count("it is inverted") == 3
    assert "raise quality.max_refused above 0.33" in message


def test_the_share_that_may_be_bad_is_a_knob(tmp_path):
    def spoil(rows):
        for row in rows[-12:]:
            row["image"] = inverted(row)

    assert run(tmp_path, "quality.max_refused=0.5", spoil=spoil).metrics["quarantined"] == 12


def test_white_on_black_throughout_is_said_to_be_inverted(tmp_path):
    def spoil(rows):
        for row in rows:
            row["image"] = inverted(row)

    with pytest.raises(ValueError, match="source rendered: 64 of 64 lines are bad.*Bring it dark on light"):
        run(tmp_path, spoil=spoil)


def test_a_text_too_long_for_its_image_is_quarantined(tmp_path):
    def spoil(rows):
        rows[0]["text"] = "a text of another line " * 20

    (reason,) = quarantine(run(tmp_path, spoil=spoil).folder).values()
    assert "too narrow for the" in reason
