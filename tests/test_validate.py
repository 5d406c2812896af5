import io
import json
import re

import numpy as np
import pytest
import rendered
from PIL import Image

from maskocr_core import config, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.data import admitted
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
    return root, bad


def quarantine_rows(folder) -> list[dict]:
    return schema.read_table(Artifact(folder), "quarantine.parquet").to_pylist()


def quarantine(folder) -> dict[str, str]:
    return {row["line_id"]: row["reasons"] for row in quarantine_rows(folder)}


def test_blank_inverted_and_truncated_lines_are_quarantined_with_their_reasons(spoiled):
    root, bad = spoiled
    found = quarantine(root / "validation")
    assert set(found) == set(bad)
    said = {blank: "The image is blank", inverted: "it is inverted", truncated: "broken PNG image"}
    for identity, how in bad.items():
        assert said[how] in found[identity]
    assert Artifact(root / "validation").metrics["quarantined"] == 6


def test_a_quarantined_line_is_never_selected(spoiled, tmp_path):
    root, bad = spoiled
    made = {"lines": root / "lines", "validation": root / "validation", "selection_out": tmp_path / "selection"}
    stages.get("fit")(config.load("smoke"), **made)
    found, selection = Artifact(root / "lines"), Artifact(tmp_path / "selection")
    selected, everything = (
        {identity for split in schema.SPLITS for identity in read(split)["line_id"].to_pylist()}
        for read in (lambda split: admitted.selected(found, selection, split), lambda split: schema.index(found, split))
    )
    assert set(bad) <= everything and selected and selected <= everything - set(bad)


def test_every_line_is_measured_in_a_table_named_like_its_shard_and_a_broken_one_has_no_measurements(spoiled):
    root, bad = spoiled
    found, validation = Artifact(root / "lines"), Artifact(root / "validation")
    shards = [shard for split in schema.SPLITS for shard in schema.shards(found, split)]
    assert validation.names(prefix="measurements/") == [f"measurements/{shard}" for shard in sorted(shards)]
    rows = [row for table in schema.read_tables(validation, "measurements/") for row in table.to_pylist()]
    assert len(rows) == 64 == validation.metrics["lines"]
    without = {row["line_id"] for row in rows if row["ink"] is None}
    assert without == {identity for identity, how in bad.items() if how is truncated}
    assert not {"image", "text"} & set(rows[0])
    labelled = [row for row in rows if row["split"] != "unlabeled"]
    assert {row["scripts"] for row in labelled} == {"Latn"} and all(row["characters"] for row in labelled)


def test_documents_with_pages_on_both_sides_are_only_stated(spoiled):
    root, _ = spoiled
    validation = Artifact(root / "validation")
    assert validation.metrics["shared_documents"] == 1
    said = "new pages of known documents: 1 of 3 validation documents also have training pages."
    assert said in validation.read_json("verdict.json")["notes"]


def test_the_contact_sheet_shows_the_quarantine_and_says_which_lines_it_shows(spoiled):
    root, bad = spoiled
    page = (root / "validation/contact_sheet.html").read_text()
    assert page.count("data:image/webp") == 4 and page.count("no picture") == 2
    assert set(Artifact(root / "validation").read_json("shown.json")["contact_sheet.html"]) == set(bad)
    assert all(identity in page for identity in bad)


@pytest.mark.parametrize("page", ["contact_sheet.html", "data_docs"])
def test_every_page_that_names_a_line_is_listed_as_showing_it(spoiled, page):
    folder = spoiled[0] / "validation"
    shown = json.loads((folder / "shown.json").read_text())
    everything = {row["line_id"] for row in quarantine_rows(folder)}
    for path in [folder / page] if page.endswith(".html") else (folder / page).rglob("*.html"):
        named = {identity for identity in everything if identity in path.read_text()}
        assert named == set(shown.get(str(path.relative_to(folder)), ()))


@pytest.mark.browser
def test_a_browser_asks_for_nothing_but_the_pages_themselves(spoiled):
    from browsing import opened

    folder = spoiled[0] / "validation"
    pages = sorted(folder.rglob("*.html"))
    asked, said = opened(*pages)
    assert asked == [page.as_uri() for page in pages] and len(pages) == 4 and not said


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


def page_of(row, other) -> None:
    row |= {name: other[name] for name in ("source", "page", "doc")}


def first(rows, split):
    return next(row for row in rows if row["split"] == split)


def test_an_image_on_both_sides_of_a_held_out_border_fails_by_place(tmp_path):
    def spoil(rows):
        first(rows, "test")["image"] = first(rows, "train")["image"]

    with pytest.raises(ValueError, match="1 images lie in more than one labelled split") as caught:
        run(tmp_path, spoil=spoil)
    assert "train (rendered / rendered/train/document-00" in str(caught.value)
    assert "test (rendered / rendered/test/document-00" in str(caught.value)


def test_an_image_twice_on_one_side_or_among_unlabelled_lines_is_no_leak(tmp_path):
    def spoil(rows):
        rows[4]["image"] = rows[0]["image"]  # another training document
        rows[-1]["image"] = first(rows, "test")["image"]

    assert run(tmp_path, spoil=spoil).metrics["lines"] == 62


def test_two_blank_scraps_are_the_same_image_and_no_leak(tmp_path):
    def spoil(rows):
        for split in ("train", "test"):
            row = first(rows, split)
            row |= {"width": 400, "height": 48}
            row["image"] = blank(row)

    assert run(tmp_path, "quality.max_refused=0.5", spoil=spoil).metrics["quarantined"] == 1


def recompressed(row) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(row["image"])).save(file, "JPEG", quality=50)
    return file.getvalue()


def test_the_same_line_compressed_anew_with_its_text_fails(tmp_path):
    def spoil(rows):
        test, train = first(rows, "test"), first(rows, "train")
        test |= {"image": recompressed(train), "text": train["text"], "width": train["width"]}

    with pytest.raises(ValueError, match="1 pairs of near-duplicate images with equal text.*of 256 bits"):
        run(tmp_path, spoil=spoil)


def test_near_duplicates_of_different_text_and_equal_texts_alone_are_stated(tmp_path):
    def spoil(rows):
        test, train = first(rows, "test"), first(rows, "train")
        test |= {"image": recompressed(train), "width": train["width"]}
        first(rows, "val")["text"] = train["text"].replace(" ", "  ")

    validation = run(tmp_path, spoil=spoil)
    notes = " ".join(validation.read_json("verdict.json")["notes"])
    assert "near duplicates: 1 pairs" in notes and "equal texts: 1 of 8 validation lines" in notes
    pair = schema.read_table(validation, "near_duplicates.parquet").to_pylist()
    assert [row["split"] for row in pair] == ["test", "train"] and {row["pair"] for row in pair} == {0}


def test_a_document_torn_where_ingest_splits_by_document_fails(tmp_path):
    from maskocr_core.config import Data
    from maskocr_core.data import readers
    from maskocr_core.data.qa import leaks

    data = Data()
    documents = {("s", str(n)): [readers.split_of(str(n), True, data)] for n in range(40)}
    documents["s", "torn"] = ["train", "test"]
    found = leaks.Leaks({}, documents, {}, [], (0, 0), {})
    (fault,) = leaks.faults(found, data)
    assert "1 documents" in fault and "s / torn" in fault
    brought = documents | {("s", "0"): ["val" if documents["s", "0"] == ["train"] else "train"]}
    assert not leaks.faults(leaks.Leaks({}, brought, {}, [], (0, 0), {}), data)
    assert not leaks.faults(found, data.model_copy(update={"split_unit": "page"}))


def test_scripts_that_mix_and_characters_never_trained_on_are_stated(tmp_path):
    def spoil(rows):
        rows[0]["text"] = "\u0410nna et Maria"
        first(rows, "test")["text"] = "die Straße Ω\u0304 und mehr"

    notes = " ".join(run(tmp_path, spoil=spoil).read_json("verdict.json")["notes"])
    assert "script mix: 2 labelled lines" in notes and "1 of them inside one word" in notes
    assert "‘Ω’ U+03A9 in 1 lines" in notes and "‘◌\u0304’ U+0304" in notes


def test_labelled_lines_of_which_the_end_is_not_read_are_stated(tmp_path):
    def widest(name, *overrides):
        validation = run(tmp_path / name, *overrides)
        shards = validation.names(prefix="measurements/", suffix=".parquet")
        rows = [row for shard in shards for row in schema.read_table(validation, shard).to_pylist()]
        widths = [row["width"] * 32 / row["height"] for row in rows if row["split"] != "unlabeled"]
        return " ".join(validation.read_json("verdict.json")["notes"]), widths

    notes, widths = widest("whole")
    assert "cut lines" not in notes
    limit = int(sorted(widths)[-4]) - 8
    notes, _ = widest("cut", f"data.max_width={limit}")
    count = sum(width > limit + 8 for width in widths)
    assert count and f"cut lines: {count} labelled lines" in notes
    assert f"wider than data.max_width={limit} at a height of 32 px" in notes


def test_a_source_whose_lines_were_turned_is_stated(tmp_path):
    """Short lines turned by 90° and set side by side: as wide as a line, and of no upright text."""

    def spoil(rows):
        extra = rendered.rows(documents=15, lines=4, split="unlabeled", source="turned", seed=9)
        for row in extra:
            pixels = np.asarray(Image.open(io.BytesIO(row["image"])))
            row["image"] = rendered.png(np.hstack([np.rot90(pixels[:, :150])] * 8))
            row["height"], row["width"] = 150, 8 * pixels.shape[0]
        rendered.parquet(tmp_path / "pack/second.parquet", extra)

    (note,) = run(tmp_path, spoil=spoil).read_json("verdict.json")["notes"][-1:]
    assert note.startswith("turned lines: in ") and "of 60 lines of source turned" in note


def test_a_shard_that_is_mostly_bad_fails_though_its_source_is_good_enough(tmp_path):
    def spoil(rows):
        extra = rendered.rows(documents=15, lines=4, split="unlabeled", seed=9)
        for row in extra[:36]:
            row["image"] = inverted(row)
        rendered.parquet(tmp_path / "pack/second.parquet", extra)

    with pytest.raises(ValueError, match=r"shard unlabeled/part-\w+.parquet: 36 of 60 lines are bad") as caught:
        run(tmp_path, "quality.max_refused=0.9", spoil=spoil)
    assert str(caught.value).count("it is inverted") == 3 and "quality.max_refused_shard above 0.60" in str(
        caught.value
    )
    assert (
        run(tmp_path / "again", "quality.max_refused=0.9", "quality.max_refused_shard=0.7").metrics["quarantined"] == 0
    )


def test_everything_that_is_wrong_is_printed_before_the_first_fault_is_raised(tmp_path, capsys):
    def spoil(rows):
        page_of(first(rows, "train"), first(rows, "test"))
        for row in rows[-40:]:
            row["image"] = inverted(row)

    with pytest.raises(ValueError, match="1 pages"):
        run(tmp_path, spoil=spoil)
    said = capsys.readouterr().out
    assert "validate: also source rendered: 40 of 64 lines are bad" in said
    sheet = said.partition("can be seen in ")[2].split("\n")[0]
    assert "data:image/webp" in open(sheet).read()


def test_a_share_beyond_one_is_refused():
    with pytest.raises(ValueError, match="quality.max_refused_shard"):
        config.load("smoke", ["quality.max_refused_shard=1.5"])


def test_processes_give_the_bytes_that_one_process_gives(spoiled, tmp_path, monkeypatch):
    root, _ = spoiled
    monkeypatch.setenv("MASKOCR_MAP", "processes")
    monkeypatch.setenv("MASKOCR_JOBS", "2")
    stages.get("validate")(config.load("smoke"), lines=root / "lines", validation_out=tmp_path / "validation")
    assert Artifact(tmp_path / "validation").version == Artifact(root / "validation").version


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("pack", "known"),
    [
        ("fr_hand", ["5 of 5 validation", "5 of 5 test"]),
        ("medieval_hand", ["7 of 13 validation", "14 of 21 test"]),
        ("fraktur_print", []),
        ("early_print_fr", []),
        ("modern_hand_fr", []),
    ],
)
def test_labelled_real_lines_pass_and_known_documents_are_stated(pack, known, tmp_path):
    from conftest import PACKS

    (tmp_path / "pack").mkdir()
    for split in ("train", "val", "test"):
        (tmp_path / f"pack/{split}.parquet").symlink_to(PACKS / pack / f"{split}.parquet")
    pilot = config.load("pilot")
    stages.get("ingest")(pilot, data_uri=str(tmp_path / "pack"), lines_out=tmp_path / "lines")
    stages.get("validate")(pilot, lines=tmp_path / "lines", validation_out=tmp_path / "validation")
    validation = Artifact(tmp_path / "validation")
    assert validation.metrics["near_duplicates"] == 0 == validation.metrics["expectations_failed"]
    assert validation.metrics["quarantined"] < 0.005 * validation.metrics["lines"]
    notes = " ".join(validation.read_json("verdict.json")["notes"])
    assert all(f"{part} documents also have training pages" in notes for part in known)
    assert ("new pages of known documents" in notes) is bool(known)
