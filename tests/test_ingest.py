import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rendered

from maskocr_core import config, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.data import lines, packing, readers, tombstones
from maskocr_core.services import mapping

LABELLED = ("train", "val", "test")


@pytest.fixture(autouse=True)
def inline(monkeypatch):
    """A process takes longer to start than the few lines of a test take to ingest."""
    monkeypatch.setenv("MASKOCR_MAP", "inline")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Twelve documents of three labelled lines each, which by their names fall into all of train, val and test."""
    return rendered.documents(tmp_path_factory.mktemp("drawn") / "pairs", documents=12, lines=3, degrade=0.2)


@pytest.fixture
def pairs(drawn, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(drawn, tmp_path / "pairs")


@pytest.fixture
def pack(tmp_path):
    """A folder for Parquet files, and rows of all splits that a test may change before it writes them."""
    rows = []
    for seed, (split, documents) in enumerate((("train", 3), ("val", 2), ("test", 2), ("unlabeled", 2))):
        rows += rendered.rows(documents=documents, lines=2, split=split, seed=seed, degrade=0.2)
    return tmp_path / "pack", rows


def ingest(data, *overrides, out="lines", transfer="") -> Artifact:
    settings = config.load("smoke", overrides)
    folder = Path(out).absolute()
    stages.get("ingest")(settings, data_uri=str(data), transfer_uri=str(transfer), lines_out=folder)
    return Artifact(folder)


def rows_of(artifact, *splits) -> list[dict]:
    found = []
    for split in splits or lines.SPLITS:
        found += [row | {"split": split} for row in lines.index(artifact, split).to_pylist()]
    return found


def refused(artifact) -> dict[str, str]:
    table = lines.read_table(artifact, "refused.parquet")
    return dict(zip(table["item"].to_pylist(), table["reason"].to_pylist(), strict=True))


def splits_of(artifact) -> dict[str, set[str]]:
    sides = {}
    for row in rows_of(artifact):
        sides.setdefault(row["document_id"], set()).add(row["split"])
    return sides


# Images with their text beside them


def test_labelled_documents_are_split_whole(pairs):
    sides = splits_of(ingest(pairs))
    assert len(sides) == 12 and all(len(splits) == 1 for splits in sides.values())
    assert set().union(*sides.values()) == set(LABELLED)


def test_a_document_keeps_its_split_when_others_are_added(pairs):
    before = splits_of(ingest(pairs))
    for document in sorted(pairs.iterdir())[:5]:
        for image in document.glob("*.png"):
            added = pairs / f"added-{document.name}" / image.name
            added.parent.mkdir(exist_ok=True)
            added.write_bytes(image.read_bytes() + b" ")  # another image to the digest, the same to a decoder
            added.with_suffix(".gt.txt").write_text("Text.")
    after = splits_of(ingest(pairs))
    assert len(after) == 17
    assert {document: after[document] for document in before} == before


def test_text_folder_and_source_come_from_the_files(pairs):
    row = next(row for row in rows_of(ingest(pairs)) if row["document_id"] == "document-05")
    texts = {path.read_text().strip() for path in (pairs / "document-05").glob("*.gt.txt")}
    assert row["text"] in texts and row["page_id"] == "document-05" and row["source"] == "pairs"


def test_a_plain_txt_beside_an_image_is_its_text_too(pairs):
    expected = {path.read_text().strip() for path in pairs.rglob("*.gt.txt")}
    for path in pairs.rglob("*.gt.txt"):
        path.rename(path.with_name(path.name.replace(".gt.txt", ".txt")))
    assert {row["text"] for row in rows_of(ingest(pairs))} == expected


def test_an_image_without_text_is_an_unlabelled_line(pairs):
    (pairs / "document-04/000.gt.txt").unlink()
    (pairs / "document-05/000.gt.txt").write_text(" \n")
    rendered.documents(pairs / "more", documents=2, lines=2, labelled=False, seed=9)
    artifact = ingest(pairs)
    assert artifact.metrics["unlabeled"] == 6 and artifact.metrics["refused"] == 0
    unlabelled = rows_of(artifact, "unlabeled")
    assert len(unlabelled) == 6 and all(row["text"] is None for row in unlabelled)
    assert {row["document_id"] for row in unlabelled} == {"document-04", "document-05", "more"}


def test_a_broken_image_is_listed_and_the_rest_goes_through(pairs):
    (pairs / "document-04/000.png").write_text("This is a text.")
    (pairs / "document-05/001.png").write_bytes(b"")
    artifact = ingest(pairs)
    assert refused(artifact) == {
        name: "no readable PNG, JPEG, WEBP or TIFF image" for name in ("document-04/000.png", "document-05/001.png")
    }
    assert artifact.metrics["refused"] == 2 and len(rows_of(artifact)) == 34


def test_a_transcription_without_an_image_is_listed(pairs):
    (pairs / "document-04/000.png").unlink()
    (pairs / "readme.txt").write_text("Where these come from.")
    found = refused(ingest(pairs))
    assert set(found) == {"document-04/000.gt.txt", "readme.txt"}
    assert set(found.values()) == {"a transcription without an image beside it"}


def test_a_transcription_that_is_not_utf_8_is_listed_with_its_image(pairs):
    (pairs / "document-04/000.gt.txt").write_bytes("Straße".encode("latin-1"))
    artifact = ingest(pairs)
    assert refused(artifact) == {"document-04/000.png": "document-04/000.gt.txt is not UTF-8"}
    assert len(rows_of(artifact)) == 35


def test_a_byte_order_mark_is_no_part_of_the_text(pairs):
    (pairs / "document-04/000.gt.txt").write_text("Anfang", encoding="utf-8-sig")
    assert "Anfang" in {row["text"] for row in rows_of(ingest(pairs))}


def test_an_image_that_comes_twice_on_a_page_is_kept_once_and_listed(pairs):
    shutil.copy(pairs / "document-04/000.png", pairs / "document-04/twice.png")
    artifact = ingest(pairs)
    assert list(refused(artifact).values()) == ["the same image as another line of page document-04"]
    assert len(rows_of(artifact)) == 36


def test_an_image_that_two_documents_own_is_read_once_and_keeps_both_owners(pairs):
    image = pairs / "document-04/000.png"
    shutil.copy(image, pairs / "document-11/twice.png")
    artifact = ingest(pairs)
    assert artifact.metrics["copies"] == 1 and artifact.metrics["refused"] == 0 and len(rows_of(artifact)) == 36
    owners = lines.read_table(artifact, "duplicates.parquet").to_pylist()
    assert {row["document_id"] for row in owners} == {"document-04", "document-11"}
    assert {row["line_id"] for row in owners} == {lines.line_id(image.read_bytes())}
    assert sorted(row["rank"] for row in owners) == [0, 1]


def test_what_is_forgotten_does_not_come_in_and_the_copy_of_another_owner_does(pairs):
    shutil.copy(pairs / "document-04/000.png", pairs / "document-11/twice.png")
    whole = ingest(pairs, out="whole")
    listed = {"digest": tombstones.digest("pairs", "document-04"), "document": "", "at": "2026-01-01", "reason": ""}
    tombstones.add([listed])
    artifact = ingest(pairs)
    assert artifact.metrics["forgotten"] == 3 and artifact.version != whole.version
    rows = rows_of(artifact)
    assert len(rows) == 34 and "document-04" not in {row["document_id"] for row in rows}
    assert lines.line_id((pairs / "document-04/000.png").read_bytes()) in {row["line_id"] for row in rows}
    documents = set(lines.read_table(artifact, "documents.parquet")["document_id"].to_pylist())
    assert len(documents) == 11 and "document-04" not in documents


def test_hidden_files_and_strange_ones_do_no_harm(pairs):
    (pairs / ".DS_Store").write_bytes(b"\0")
    (pairs / "document-04/Thumbs.db").write_bytes(b"\0")
    assert ingest(pairs).metrics["refused"] == 0


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "there is no file here"),
        (["a/1.gt.txt", "a/2.gt.txt"], "neither Parquet files nor line images"),
        (["a/1.png", "a/1.gt.txt"], "none of the 1 items is a line; refused: a/1.png: no readable"),
    ],
)
def test_a_folder_with_no_line_is_refused_by_name(tmp_path, files, message):
    folder = tmp_path / "yours"
    folder.mkdir()
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("text")
    with pytest.raises(ValueError, match=message) as caught:
        ingest(folder)
    assert str(folder) in str(caught.value)


def test_a_folder_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such file or folder"):
        ingest(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("documents", "missing"),
    [((4, 5), "validation lines"), ((0, 3), "labelled lines to fine-tune on"), ((0, 4), "test lines")],
)
def test_too_few_documents_are_answered_with_the_missing_part_and_the_mend(pairs, documents, missing):
    keep = {f"document-{number:02}" for number in documents}
    for folder in pairs.iterdir():
        if folder.name not in keep:
            shutil.rmtree(folder)
    with pytest.raises(ValueError, match=f"there are no {missing}.*data.split_unit=page"):
        ingest(pairs)


def test_one_document_of_many_pages_is_split_by_page_if_asked(pairs, tmp_path):
    book = tmp_path / "yours"
    shutil.move(pairs, book / "book")
    with pytest.raises(ValueError, match="data.split_unit=page"):
        ingest(book)
    artifact = ingest(book, "data.split_unit=page", "data.test_share=0.3", "data.validation_share=0.3")
    assert {row["document_id"] for row in rows_of(artifact)} == {"book"}
    sides = {}
    for row in rows_of(artifact):
        sides.setdefault(row["page_id"], set()).add(row["split"])
    assert len(sides) == 12 and all(len(splits) == 1 for splits in sides.values())


# Parquet


def test_splits_order_and_licence_that_the_data_bring_are_kept(pack):
    folder, rows = pack
    rendered.parquet(folder / "all.parquet", rows)
    found = {row["line_id"]: row for row in rows_of(ingest(folder))}
    assert len(found) == len(rows)
    for row in rows:
        line = found[lines.line_id(row["image"])]
        assert line["split"] == row["split"] and line["license"] == "CC0-1.0" and line["text"] == row["text"]
        assert line["order"] == (row["order"] if row["split"] != "unlabeled" else None)
        assert (line["page_id"], line["document_id"], line["source"]) == (row["page"], row["doc"], row["source"])
        assert (line["height"], line["width"]) == (row["height"], row["width"])


def test_a_split_may_be_named_by_the_file(pack):
    folder, rows = pack
    for split, name in (
        ("train", "train-00000"),
        ("val", "validation"),
        ("test", "test.a"),
        ("unlabeled", "Unlabelled"),
    ):
        table = pa.Table.from_pylist([row for row in rows if row["split"] == split]).drop_columns(["split"])
        folder.mkdir(exist_ok=True)
        pq.write_table(table, folder / f"{name}.parquet")
    assert Counter(row["split"] for row in rows_of(ingest(folder))) == Counter(row["split"] for row in rows)


@pytest.mark.parametrize("theirs", ["training", "Train", "TRAIN"])
def test_other_names_of_splits_are_understood(pack, theirs):
    folder, rows = pack
    rendered.parquet(
        folder / "a.parquet", [row | {"split": {"train": theirs}.get(row["split"], row["split"])} for row in rows]
    )
    assert ingest(folder).metrics["train"] == 6


def test_a_labelled_line_without_text_is_unlabelled_and_an_unlabelled_one_keeps_no_text(pack):
    folder, rows = pack
    rows[0]["text"], rows[1]["text"] = None, "  "
    rows[-1]["text"] = "A text that must not be seen."
    rendered.parquet(folder / "a.parquet", rows)
    artifact = ingest(folder)
    assert artifact.metrics["train"] == 4 and artifact.metrics["unlabeled"] == 6
    assert all(row["text"] is None for row in rows_of(artifact, "unlabeled"))


def test_text_is_composed_and_stripped(pack):
    folder, rows = pack
    rows[0]["text"] = "  u\u0308ber  die Bru\u0308cke \n"
    rendered.parquet(folder / "a.parquet", rows)
    texts = {row["text"] for row in rows_of(ingest(folder))}
    assert "\u00fcber  die Br\u00fccke" in texts


@pytest.mark.parametrize(("column", "ours"), [("image", "image"), ("page", "page_id"), ("doc", "document_id")])
def test_a_missing_column_is_named_with_the_mend(pack, column, ours):
    folder, rows = pack
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows).rename_columns({column: "something"}), folder / "a.parquet")
    with pytest.raises(ValueError) as caught:
        ingest(folder)
    assert f"'{column}'" in str(caught.value) and f'data.columns={{"{ours}": "…"}}' in str(caught.value)
    assert str(folder) in str(caught.value)


def test_columns_of_other_names_are_found_by_the_map(pack):
    folder, rows = pack
    names = {"image": "bild", "page": "seite", "doc": "band", "text": "wort", "split": "teil"}
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows).rename_columns(names), folder / "a.parquet")
    mapped = (
        'data.columns={"image": "bild", "page_id": "seite", "document_id": "band", "text": "wort", "split": "teil"}'
    )
    found = {row["line_id"]: row for row in rows_of(ingest(folder, mapped))}
    for row in rows:
        line = found[lines.line_id(row["image"])]
        assert (line["page_id"], line["document_id"], line["text"]) == (row["page"], row["doc"], row["text"])
        assert line["split"] == row["split"]


def test_images_in_structs_as_hugging_face_keeps_them_are_read(pack):
    folder, rows = pack
    structs = [row | {"image": {"bytes": row["image"], "path": "1.png"}} for row in rows]
    structs.append(structs[0] | {"image": {"bytes": None, "path": "elsewhere.png"}})
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(structs), folder / "a.parquet")
    artifact = ingest(folder)
    assert {row["line_id"] for row in rows_of(artifact)} == {lines.line_id(row["image"]) for row in rows}
    assert list(refused(artifact)) == [f"a.parquet:{len(rows)}"]


def test_a_side_table_without_images_is_listed_and_not_fatal(pack):
    folder, rows = pack
    rendered.parquet(folder / "a.parquet", rows)
    pq.write_table(pa.table({"page": ["p"], "scan": ["s"]}), folder / "pages.parquet")
    artifact = ingest(folder)
    assert refused(artifact) == {"pages.parquet": "has no column of images; taken for a side table"}
    assert len(rows_of(artifact)) == len(rows)


def test_a_row_of_no_page_or_document_is_listed(pack):
    folder, rows = pack
    rows[0]["page"], rows[1]["doc"] = None, None
    rendered.parquet(folder / "a.parquet", rows)
    artifact = ingest(folder)
    assert set(refused(artifact)) == {"a.parquet:0", "a.parquet:1"}
    assert len(rows_of(artifact)) == len(rows) - 2


def test_a_file_that_is_no_parquet_is_listed_and_the_rest_goes_through(pack):
    folder, rows = pack
    rendered.parquet(folder / "a.parquet", rows)
    whole = (folder / "a.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    artifact = ingest(folder)
    assert list(refused(artifact)) == ["cut.parquet"] and len(rows_of(artifact)) == len(rows)


def test_broken_images_among_good_ones_are_listed_by_row(pack):
    folder, rows = pack
    rows[1]["image"], rows[3]["image"] = b"no image", rendered.png(np.zeros((1200, 40), np.uint8))
    rendered.parquet(folder / "a.parquet", rows)
    found = refused(ingest(folder))
    assert set(found) == {"a.parquet:1", "a.parquet:3"} and "cut pages into lines first" in found["a.parquet:3"]


# Versions of the data


def shards(artifact) -> dict[str, bytes]:
    return {name: artifact.read_bytes(name) for split in lines.SPLITS for name in lines.shards(artifact, split)}


def test_the_same_data_give_the_same_bytes_whenever_and_wherever_they_are_read(pairs, monkeypatch, tmp_path):
    first = ingest(pairs, "data.shard_lines=8", out="first")
    elsewhere = shutil.copytree(pairs, tmp_path / "elsewhere/pairs")
    for path in elsewhere.rglob("*"):
        os.utime(path, (1, 1))
    second = ingest(elsewhere, "data.shard_lines=8", out="second")
    assert first.version == second.version
    assert first.manifest["files"] == second.manifest["files"]
    assert all(first.read_bytes(name) == second.read_bytes(name) for name in first.names())


def test_new_documents_and_files_leave_the_shards_of_old_ones_as_they_are(pack):
    folder, rows = pack
    for split in {row["split"] for row in rows}:
        rendered.parquet(folder / f"{split}.parquet", [row for row in rows if row["split"] == split])
    before = shards(ingest(folder, out="before"))
    rendered.parquet(folder / "train-2.parquet", rendered.rows(documents=2, lines=2, split="train", seed=31))
    again = rows[0] | {"doc": "again", "page": "again"}
    rendered.parquet(folder / "unlabeled-2.parquet", [again | {"split": "unlabeled", "text": None}])
    artifact = ingest(folder, out="after")
    after = shards(artifact)
    assert len(after) == len(before) + 2 and before == {name: after[name] for name in before}
    assert artifact.metrics["copies"] == 1 and artifact.metrics["unlabeled"] == 4


def test_most_shards_of_loose_files_stay_when_a_document_is_added(tmp_path):
    folder = rendered.documents(tmp_path / "pairs", documents=40, lines=2, degrade=0.2)
    before = shards(ingest(folder, "data.shard_lines=8", out="before"))
    shutil.copytree(folder / "document-07", folder / "document-07a")
    for image in (folder / "document-07a").glob("*.png"):
        image.write_bytes(image.read_bytes() + b" ")
    after = shards(ingest(folder, "data.shard_lines=8", out="after"))
    kept = {name: content for name, content in before.items() if after.get(name) == content}
    assert len(kept) > 0.6 * len(before)


# Resuming, and being told what will be done


_KILLED = """
import sys, time
from pathlib import Path
from maskocr_core import config, stages
from maskocr_core.data import packing
pack = packing.pack
def slow(unit, data, prefix, part):
    time.sleep(0.3)
    return pack(unit, data, prefix, part)
packing.pack = slow
stages.get("ingest")(config.load("smoke", ["data.shard_lines=8"]), data_uri=sys.argv[1], transfer_uri="", lines_out=Path(sys.argv[2]))
"""


def test_a_killed_ingest_goes_on_with_the_parts_that_are_finished_and_gives_the_same_lines(
    pairs, monkeypatch, tmp_path
):
    killed = subprocess.Popen([sys.executable, "-c", _KILLED, str(pairs), str(tmp_path / "lines")])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("stages/ingest/*/scratch/parts/*/result.json"))) < 2:
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    finished = [path.parent.name for path in tmp_path.glob("stages/ingest/*/scratch/parts/*/result.json")]
    assert not (tmp_path / "lines").exists()
    made, pack = [], packing.pack
    monkeypatch.setattr(packing, "pack", lambda unit, *rest: made.append(unit.name) or pack(unit, *rest))
    resumed = ingest(pairs, "data.shard_lines=8")
    units = {unit.name for unit in readers.plan(str(pairs), config.load("smoke", ["data.shard_lines=8"]).data)}
    assert set(made) == units - set(finished) and len(made) == len(units) - len(finished) > 0
    monkeypatch.setenv("MASKOCR_WORK", str(tmp_path / "other"))
    assert ingest(pairs, "data.shard_lines=8", out="whole").manifest["files"] == resumed.manifest["files"]
    assert not list(tmp_path.glob("stages/ingest/*/scratch"))


def test_progress_says_how_many_units_and_lines_are_done_and_how_many_are_refused(pairs, monkeypatch, capsys):
    monkeypatch.setattr("maskocr_core.progress.EVERY_SECONDS", 0.0)
    (pairs / "document-04/000.png").write_text("no image")
    ingest(pairs, "data.shard_lines=8")
    said = capsys.readouterr().out.splitlines()
    total = said[-1].split("/")[1].split()[0]
    assert len(said) == int(total) + 1 and said[0].startswith(f"ingest: 1/{total}  lines ")
    assert said[-1].startswith(f"ingest: {total}/{total}  lines 35, refused 1, train ")


def maskocr(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "maskocr_core.cli", *arguments], capture_output=True, text=True, check=False
    )


def test_a_dry_run_says_what_is_there_and_writes_nothing(pairs, tmp_path):
    (pairs / "document-04/000.png").write_text("no image")
    rendered.parquet(tmp_path / "other/a.parquet", rendered.rows(documents=1, lines=2, source="other", seed=20))
    before = sorted(tmp_path.rglob("*"))
    done = maskocr("ingest", "--recipe", "smoke", "--data-uri", "pairs", "--transfer-uri", "other", "--dry-run")
    assert done.returncode == 0 and not done.stderr
    for said in (
        "36 line images with text",
        "35 labelled, split by document",
        "refused: document-04/000.png: no readable",
    ):
        assert said in done.stdout
    assert f"{tmp_path / 'other'}: 1 files" in done.stdout and "nothing was written" in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_ends_as_ingest_would_where_there_is_nothing(tmp_path):
    done = maskocr("ingest", "--data-uri", "nowhere", "--dry-run")
    assert done.returncode == 2 and "nowhere: no such file or folder" in done.stderr


def test_without_dry_run_an_output_is_asked_for(pairs):
    done = maskocr("ingest", "--data-uri", "pairs")
    assert done.returncode == 2 and "--lines-out" in done.stderr and "--dry-run" in done.stderr


def test_a_changed_text_is_another_version(pairs):
    first = ingest(pairs, out="first").version
    (pairs / "document-04/000.gt.txt").write_text("Another text.")
    assert ingest(pairs, out="second").version != first


def test_nothing_is_left_at_the_output_when_ingest_fails(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError):
        ingest(tmp_path / "empty", out="lines")
    assert not (tmp_path / "lines").exists()


# Transfer


@pytest.mark.parametrize(("change", "said"), [("write over", "was written over"), ("take away", "was taken away")])
def test_a_file_that_changes_while_it_is_read_is_named_and_nothing_is_left(pairs, monkeypatch, change, said):
    read = mapping.over

    def meanwhile(*arguments, **named):
        read(*arguments, **named)
        file = sorted(pairs.rglob("*.png"))[0]
        file.write_bytes(file.read_bytes() + b"more") if change == "write over" else file.unlink()

    with monkeypatch.context() as patch:
        patch.setattr(mapping, "over", meanwhile)
        with pytest.raises(ValueError, match=f"png in {pairs} {said} while it was read: .* then run again"):
            ingest(pairs)
    assert not Path("lines").exists()
    assert ingest(pairs, out="later").names()


def test_a_file_that_comes_while_others_are_read_waits_for_the_next_time(pairs, monkeypatch):
    read, before = mapping.over, len(rows_of(ingest(pairs, out="before")))

    def meanwhile(*arguments, **named):
        read(*arguments, **named)
        rendered.documents(pairs / "late", documents=1, lines=2)

    monkeypatch.setattr(mapping, "over", meanwhile)
    assert len(rows_of(ingest(pairs, "data.shard_lines=64"))) == before


def test_transfer_lines_have_splits_of_their_own(pack, tmp_path):
    folder, rows = pack
    rendered.parquet(folder / "a.parquet", rows)
    other = []
    for seed, split in enumerate(("train", "val", "test", "unlabeled"), 20):
        other += rendered.rows(documents=2, lines=2, split=split, source="other", seed=seed)
    rendered.parquet(tmp_path / "other/a.parquet", other)
    artifact = ingest(folder, transfer=tmp_path / "other")
    assert {row["source"] for row in rows_of(artifact, *LABELLED, "unlabeled")} == {"rendered"}
    for split in ("train", "val"):
        texts = {row["text"] for row in rows_of(artifact, f"transfer-{split}")}
        assert texts == {row["text"] for row in other if row["split"] == split}
    assert artifact.metrics["transfer_train"] == 4 and artifact.metrics["transfer_val"] == 4


def test_a_transfer_line_that_is_also_a_test_line_is_left_out(pack, tmp_path):
    folder, rows = pack
    rendered.parquet(folder / "a.parquet", rows)
    other = rendered.rows(documents=2, lines=2, source="other", seed=20)
    other += rendered.rows(documents=1, lines=2, split="val", source="other", seed=21)
    leak = next(row for row in rows if row["split"] == "test") | {"split": "train"}
    rendered.parquet(tmp_path / "other/a.parquet", [*other, leak])
    artifact = ingest(folder, transfer=tmp_path / "other")
    assert artifact.metrics["transfer_train"] == 4 and artifact.metrics["copies"] == 1
    assert lines.line_id(leak["image"]) not in {row["line_id"] for row in rows_of(artifact, "transfer-train")}
    assert lines.line_id(leak["image"]) in {row["line_id"] for row in rows_of(artifact, "test")}


def test_a_split_that_is_none_is_refused_by_name(pack):
    folder, rows = pack
    rendered.parquet(folder / "a.parquet", [row | {"split": "holdout"} for row in rows])
    with pytest.raises(ValueError, match="'holdout' in column 'split' is none of train.*rename it"):
        ingest(folder)


def test_of_two_equal_images_the_labelled_one_is_kept_in_whatever_file_it_lies(pack):
    folder, rows = pack
    rendered.parquet(folder / "val.parquet", rows)
    rendered.parquet(folder / "unlabeled.parquet", [row | {"split": "unlabeled", "text": None} for row in rows])
    artifact = ingest(folder)
    assert artifact.metrics["unlabeled"] == sum(row["split"] == "unlabeled" for row in rows)
    assert all(
        artifact.metrics[split] == sum(row["split"] == split for row in rows) for split in ("train", "val", "test")
    )


def test_transfer_lines_without_validation_are_refused_before_anything_is_trained(pack, tmp_path):
    folder, rows = pack
    rendered.parquet(folder / "a.parquet", rows)
    rendered.parquet(tmp_path / "other/a.parquet", rendered.rows(documents=2, lines=2, source="other", seed=20))
    with pytest.raises(ValueError, match="other: there are no validation lines"):
        ingest(folder, transfer=tmp_path / "other")


@pytest.mark.parametrize("model", ["models:/maskocr/1", "recognizer"])
def test_a_model_as_transfer_source_brings_no_lines(pack, tmp_path, model):
    folder, rows = pack
    rendered.parquet(folder / "a.parquet", rows)
    (tmp_path / "recognizer").mkdir()
    (tmp_path / "recognizer/recognizer.safetensors").write_bytes(b"")
    assert ingest(folder, transfer=model).metrics["transfer_train"] == 0
