"""What is forgotten is hidden at once, then gone: from artifacts, unfinished work, and whatever shows a line."""

import base64
import datetime
import fcntl
import io
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rendered
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskocr_core import artifacts
from maskocr_core.artifacts import Artifact
from maskocr_core.config import Data, Registry
from maskocr_core.data import admitted, lines, packing, readers, tombstones
from maskocr_core.erasure import doomed as doom
from maskocr_core.erasure import forget, redact, repack, tracked
from maskocr_core.erasure.places import Places
from maskocr_core.erasure.search import Search, fingerprint
from maskocr_core.services import history, logged, tracking, versions

GONE, OTHER = "letters of Mrs Kühn", "diary of Mr Weber"


def row(
    text: str, document: str = OTHER, *, number: int = 0, retain_until=None, split: str = "test", page: str = ""
) -> dict:
    image = rendered.line(text, seed=number)
    return {
        "line_id": lines.line_id(rendered.png(image)), "page_id": page or f"{document}, sheet 1", "document_id": document, "source": "archive",
        "image": rendered.png(image), "height": image.shape[0], "width": image.shape[1], "text": text, "order": None,
        "license": None, "retain_until": retain_until, "split": split,
    }  # fmt: skip


SHARED = row("This line stands in both documents.", GONE, number=7)
ROWS = [
    *(row(f"Kühn wrote: {rendered.words(number)}", GONE, number=number) for number in range(4)),
    SHARED,
    SHARED | {"document_id": OTHER, "page_id": f"{OTHER}, sheet 1"},
    *(row(f"Weber wrote: {rendered.words(number)}", number=number) for number in range(100, 104)),
]
GONE_ONLY = [row for row in ROWS[:4]]


def lines_of(folder: Path, *units: list[dict]) -> Artifact:
    """An artifact of lines, one unit a list of rows, as ingest makes it."""
    parts = []
    shutil.rmtree(folder / "lines", ignore_errors=True)
    for number, rows in enumerate(units):
        parts.append(folder / f"parts-{number}")
        unit = SimpleNamespace(name=f"unit-{number}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(packing, "_places", lambda unit: [unit.name])
            patch.setattr(readers, "read", lambda unit, data, rows=rows: iter([dict(row) for row in rows]))
            packing.pack(unit, Data(), "", parts[-1])
        artifacts.take_over(parts[-1], folder / "lines", lines.SPLITS)
    packing.join(parts, folder / "lines")
    for part in parts:
        shutil.rmtree(part)
    return artifacts.finish(folder / "lines", kind="lines", config={}, metrics={"refused": 0.0})


def texts(artifact: Artifact, split: str = "test") -> list[str]:
    return sorted(lines.index(artifact, split)["text"].to_pylist())


def erase(folder: Path, *, document: str = GONE, dry_run: bool = False, **changes) -> tuple[bool, list[str]]:
    said: list[str] = []
    asked = forget.Asked("asked by letter", **({"document": document} | changes))
    found = Places.of([folder], [])
    done = forget.forget(asked, found, folder / "stages", dry_run=dry_run, even_if_unknown=False, say=said.append)
    return done, said


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MASKOCR_TOMBSTONES", str(tmp_path / "list" / "tombstones.json"))
    folder = tmp_path / "place"
    (folder / "stages").mkdir(parents=True)
    return folder


# Hidden at once.


def test_a_tombstone_alone_hides_a_document_from_every_way_of_reading_and_a_shared_line_stays_under_its_other_owner(
    place,
):
    artifact = lines_of(place, ROWS)
    before = lines.version(artifact)
    tombstones.add([tombstones.entry("asked", tombstones.ANY_SOURCE, GONE)])
    table = lines.index(artifact, "test")
    assert set(table["document_id"].to_pylist()) == {OTHER} and table.num_rows == 5
    assert SHARED["line_id"] in table["line_id"].to_pylist()
    assert sum(batch.num_rows for batch in lines.images(artifact, "test")) == 5
    assert lines.images_of(artifact, "test", [SHARED["line_id"]]) == [SHARED["image"]]
    assert lines.version(artifact) != before


def test_what_is_forgotten_is_refused_when_it_comes_again(place):
    tombstones.add([tombstones.entry("asked", "archive", GONE)])
    artifact = lines_of(place, ROWS)
    assert GONE.encode() not in b"".join(content(place).values())
    assert texts(artifact) == sorted(row["text"] for row in ROWS[5:])


# Erased.


def test_re_packed_lines_are_what_ingest_would_have_made_without_the_document(place, tmp_path):
    units = ROWS[:6], ROWS[6:], [row("A line of another document.", "ledger", split="train")]
    lines_of(place, *units)
    done, _ = erase(place)
    assert done
    again = lines_of(tmp_path / "again", *units)  # the tombstone holds
    assert texts(Artifact(place / "lines")) == texts(again)
    old, new = (
        {entry["name"].partition("/")[0] + "/": [] for entry in artifact.manifest["files"]}
        for artifact in (Artifact(place / "lines"), again)
    )
    for artifact, found in ((Artifact(place / "lines"), old), (again, new)):
        for entry in artifact.manifest["files"]:
            found[entry["name"].partition("/")[0] + "/"].append(entry["sha256"])
    copies = "duplicates.parquet/"
    assert {name: sorted(found) for name, found in old.items() if name != copies} == {
        name: sorted(found) for name, found in new.items() if name != copies
    }


def test_every_copy_of_an_artifact_is_reached_and_other_shards_stay_as_they_are_to_the_byte(place):
    lines_of(place / "stages/ingest/key", ROWS[:6], ROWS[6:])
    artifacts.publish(place / "stages/ingest/key/lines", place / "pipelines/run/lines")
    home, published = (Artifact(place / name) for name in ("stages/ingest/key/lines", "pipelines/run/lines"))
    kept = next(
        name
        for name in lines.shards(home, "test")
        if GONE not in str(lines.open_parquet(home, name).read().drop_columns(["image"]).to_pylist())
    )
    before = home.read_bytes(kept)
    done, said = erase(place)
    assert done and not any("LEFT" in line for line in said)
    for artifact in (Artifact(home.folder), Artifact(published.folder)):
        assert artifact.read_bytes(kept) == before
        assert GONE.encode() not in b"".join(content(artifact.folder).values())
        for name in artifact.names():
            artifact.read_bytes(name)  # verifies the digest
    assert Artifact(home.folder).version == Artifact(published.folder).version


def test_another_name_of_an_erased_file_outside_the_folders_searched_is_reported(place, tmp_path):
    artifact = lines_of(place, ROWS)
    os.link(artifact.folder / lines.shards(artifact, "test")[0], tmp_path / "elsewhere.parquet")
    _, said = erase(place)
    assert any("another name outside the folders searched" in line for line in said)


def test_a_shard_of_which_nothing_is_left_goes_and_so_does_what_lies_beside_it(place):
    artifact = lines_of(place, ROWS[:4], ROWS[5:])
    shards = lines.shards(artifact, "test")
    for shard in shards:
        table = (
            lines.read_table(artifact, shard)
            .select(["line_id"])
            .append_column("weight", pa.array([1.0] * lines.read_table(artifact, shard).num_rows, pa.float32()))
        )
        lines.write(table, place / "selection" / shard)
    artifacts.finish(place / "selection", kind="selection", config={}, metrics={})
    erase(place)
    left = Artifact(place / "lines"), Artifact(place / "selection")
    assert len(lines.shards(left[0], "test")) == 1 and left[1].names(suffix=".parquet") == lines.shards(left[0], "test")
    assert sorted(admitted.selected(*left, "test")["text"].to_pylist()) == texts(left[0])


def test_a_shared_line_is_still_selected_from_the_shard_of_the_owner_that_keeps_it(place):
    artifact = lines_of(place, ROWS[:5], ROWS[5:])
    owner = tombstones.of([tombstones.entry("asked", "archive", GONE)])
    for shard in lines.shards(artifact, "test"):
        chosen = lines.index_of(artifact, shard, ["line_id"])
        weights = pa.array([0.5] * chosen.num_rows, pa.float32())
        lines.write(
            chosen.select(["line_id"]).append_column("weight", weights).cast(lines.SELECTION),
            place / "selection" / shard,
        )
    selection = artifacts.finish(place / "selection", kind="selection", config={}, metrics={})
    before = admitted.selected(artifact, selection, "test")
    read_as = before.filter(pa.compute.equal(before["line_id"], SHARED["line_id"]))
    assert read_as.num_rows == 1
    erase(place)
    after = admitted.selected(Artifact(artifact.folder), Artifact(selection.folder), "test")
    wanted = before.filter(pa.array(~owner.hides(before)))
    assert set(after["line_id"].to_pylist()) == set(wanted["line_id"].to_pylist()) | {SHARED["line_id"]}
    assert set(after["document_id"].to_pylist()) == {OTHER} and set(after["weight"].to_pylist()) == {0.5}


def test_tables_lose_the_lines_and_name_the_other_owner_of_one_that_stays(place):
    artifact = lines_of(place, ROWS)
    everything = [row for row in ROWS if row is not ROWS[5]]
    told = [
        {name: row[name] for name in tombstones.KEY} | {"reasons": f"like {row['document_id']}"} for row in everything
    ]
    read = [
        {"line_id": row["line_id"], "document_id": row["document_id"], "reference": row["text"], "read": "nothing"}
        for row in everything
    ]
    lines.write(pa.Table.from_pylist(told), place / "validation/quarantine.parquet")
    lines.write(pa.Table.from_pylist(read), place / "evaluation/predictions.parquet")
    lines.write(
        pa.table({"item": [f"{GONE}/7.png", "other.png"], "reason": ["broken", f"as {GONE_ONLY[0]['line_id']}"]}),
        place / "evaluation/refused.parquet",
    )
    for kind in ("validation", "evaluation"):
        artifacts.finish(place / kind, kind=kind, config={}, metrics={})
    erase(place)
    quarantine = lines.read_table(Artifact(place / "validation"), "quarantine.parquet").to_pylist()
    assert {row["document_id"] for row in quarantine} == {OTHER} and len(quarantine) == 5
    assert {row["page_id"] for row in quarantine} == {f"{OTHER}, sheet 1"}
    assert {row["reasons"] for row in quarantine} == {f"like {OTHER}", "like [forgotten]"}
    predictions = lines.read_table(Artifact(place / "evaluation"), "predictions.parquet").to_pylist()
    assert {row["document_id"] for row in predictions} == {OTHER}
    assert {row["line_id"] for row in predictions} == {row["line_id"] for row in ROWS[4:]}
    assert lines.read_table(Artifact(place / "evaluation"), "refused.parquet").num_rows == 0
    assert texts(Artifact(artifact.folder)) == sorted(row["text"] for row in ROWS[5:])


def test_pages_that_show_a_line_are_taken_away_whether_listed_or_found(place):
    lines_of(place, ROWS)
    page = place / "validation"
    page.mkdir()
    encoded = base64.b64encode(smaller(GONE_ONLY[1]["image"])).decode()
    pages = {
        "listed.html": "<p>a mosaic that no search would see through</p>",
        "listed.png": rendered.png(rendered.line("mosaic")),
        "picture.html": f'<img src="data:image/jpeg;base64,{encoded}">',
        "nested.svg": f'<svg><image href="data:image/jpeg;base64,{encoded}"/></svg>',
        "text.html": "<p>"
        + "".join(f"<mark>{word}</mark> " for word in GONE_ONLY[0]["text"].replace("&", "&amp;").split())
        + "</p>",
        "name.html": f"<td>{GONE.replace('ü', '&uuml;')}</td>",
        "picture.png": rendered.png(rendered.line(GONE_ONLY[2]["text"], seed=2)),
        "other.html": f'<p>{ROWS[7]["text"]}</p><img src="data:image/png;base64,{base64.b64encode(ROWS[7]["image"]).decode()}">',
        "other.png": ROWS[8]["image"],
    }
    for name, body in pages.items():
        (page / name).write_bytes(body if isinstance(body, bytes) else body.encode())
    shown = {
        "listed.html": [GONE_ONLY[3]["line_id"], ROWS[8]["line_id"]],
        "listed.png": [GONE_ONLY[3]["line_id"]],
        "other.html": [ROWS[7]["line_id"]],
    }
    artifacts.write_json(page / "shown.json", shown)
    artifacts.finish(page, kind="validation", config={}, metrics={})
    erase(place)
    after = Artifact(page)
    assert set(after.names(suffix=".png")) == {"other.png"} and not after.names(suffix=".svg")
    for name in ("listed.html", "picture.html", "text.html", "name.html"):
        assert b"lines that had to be forgotten. It was removed on 2" in after.read_bytes(name)
    assert after.read_bytes("other.html") == pages["other.html"].encode()
    assert after.read_json("shown.json") == {"other.html": [ROWS[7]["line_id"]]}


def smaller(image: bytes) -> bytes:
    opened = Image.open(io.BytesIO(image))
    buffer = io.BytesIO()
    opened.resize((opened.width * 2 // 3, opened.height * 2 // 3)).save(buffer, "JPEG", quality=60)
    return buffer.getvalue()


def test_json_loses_records_ids_names_texts_and_pictures_and_keeps_the_rest(place):
    lines_of(place, ROWS)
    gone, kept = GONE_ONLY[0], ROWS[7]
    record = {
        "examples": [{"line_id": row["line_id"], "reference": row["text"], "image_png": base64.b64encode(row["image"]).decode()} for row in (gone, kept)],
        "worst_example_ids": [gone["line_id"], kept["line_id"]],
        "null": {GONE: 0.5, OTHER: 0.25},
        "per_document": [{"source": "archive", "document_id": GONE, "n": 1}, {"source": "archive", "document_id": OTHER, "n": 2}],
        "note": f"line {gone['line_id']} of {GONE} reads {gone['text']!r}; {OTHER} is fine",
        "picture": base64.b64encode(smaller(gone["image"])).decode(),
        "cer": 0.1,
    }  # fmt: skip
    artifacts.write_json(place / "selection/verdicts.json", record)
    artifacts.finish(place / "selection", kind="selection", config={}, metrics={})
    erase(place)
    after = Artifact(place / "selection").read_json("verdicts.json")
    assert after == {
        "examples": [record["examples"][1]],
        "worst_example_ids": [kept["line_id"]],
        "null": {OTHER: 0.25},
        "per_document": [record["per_document"][1]],
        "note": f"line [forgotten] of [forgotten] reads '[forgotten]'; {OTHER} is fine",
        "picture": "[forgotten]",
        "cer": 0.1,
    }


def test_what_other_lines_say_too_is_no_trace_of_the_one_that_is_gone(place):
    same = "It is so written in both."
    lines_of(place, [row(same, GONE, number=1), row(same, OTHER, number=2)])
    artifacts.write_json(place / "selection/verdicts.json", {"note": same})
    artifacts.finish(place / "selection", kind="selection", config={}, metrics={})
    erase(place)
    assert Artifact(place / "selection").read_json("verdicts.json") == {"note": same}


def test_unfinished_work_goes_and_a_stage_at_work_is_waited_for(place):
    lines_of(place, ROWS)
    home = place / "stages/fit/key"
    for name in ("scratch/parts/a", "selection_out.unfinished", "log"):
        (home / name).mkdir(parents=True)
    with (home / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(
            RuntimeError, match="hidden from every reader, but nothing was erased yet: .*fit/key is at work"
        ):
            erase(place)
    assert (home / "scratch").is_dir() and texts(Artifact(place / "lines")) == sorted(row["text"] for row in ROWS[5:])
    assert erase(place)[0]
    assert {path.name for path in home.iterdir()} == {".lock", "log"}


def test_dry_run_lists_what_would_be_touched_and_touches_nothing(place, tmp_path):
    lines_of(place, ROWS)
    before = content(tmp_path)
    _, said = erase(place, dry_run=True)
    assert content(tmp_path) == before
    assert "to be erased: 5 lines of 1 document, 1 of them kept because another document has them too" in said
    assert any(line.startswith("would be:   rewritten: test/part-") for line in said)


def test_lines_past_their_date_go_and_those_that_end_today_stay(place):
    day = datetime.date(2026, 3, 1)
    rows = [row(f"Line number {number} of the pile.", number=number, retain_until=limit) for number, limit in
            enumerate([None, day, day - datetime.timedelta(1), day - datetime.timedelta(900)])]  # fmt: skip
    lines_of(place, rows)
    done, _ = erase(place, document=None, expired_on=day)
    assert done and texts(Artifact(place / "lines")) == [rows[0]["text"], rows[1]["text"]]
    owned = lines.read_table(Artifact(place / "lines"), "documents.parquet").to_pylist()
    assert [(row["lines"], row["first_expiry"]) for row in owned] == [(2, day)]
    assert erase(place, document=None, expired_on=day)[1][-1] == "nothing of it was found here"


def test_of_two_documents_of_one_name_the_one_of_the_named_source_goes_and_a_source_goes_whole(place):
    other = row("From the other archive.", GONE, number=50) | {"source": "other archive"}
    lines_of(place, [*ROWS, other])
    erase(place, source="archive")
    assert texts(Artifact(place / "lines")) == sorted(row["text"] for row in [*ROWS[5:], other])
    erase(place, document=None, source="archive")
    assert texts(Artifact(place / "lines")) == [other["text"]]


def test_an_unknown_document_is_said_and_changes_nothing_unless_it_is_for_data_to_come(place, tmp_path):
    lines_of(place, ROWS)
    before = content(tmp_path)
    with pytest.raises(
        ValueError, match="no line of document 'unknown' is in the folders.*nothing was changed.*--even-if-unknown"
    ):
        erase(place, document="unknown")
    assert content(tmp_path) == before
    asked = forget.Asked("asked", document="unknown")
    forget.forget(
        asked, Places.of([place], []), place / "stages", dry_run=False, even_if_unknown=True, say=lambda line: None
    )
    assert tombstones.load().hides_document("any", "unknown")


@pytest.mark.parametrize(
    "asked", [{}, {"document": "a", "listed": True}, {"source": "a", "expired_on": datetime.date(2026, 1, 1)}]
)
def test_nothing_or_two_things_at_once_cannot_be_asked_for(place, asked):
    with pytest.raises(ValueError, match="say what to forget: --document ID, --source S"):
        forget.Asked("asked", **asked).stones(Places.of([place], []))


def test_what_is_listed_is_erased_in_another_clone_too(place, tmp_path):
    lines_of(place, ROWS)
    shutil.copytree(place, tmp_path / "clone")
    erase(place)
    done, said = erase(tmp_path / "clone", document=None, listed=True)
    assert done and GONE.encode() not in b"".join(content(tmp_path / "clone").values())


def test_forgetting_twice_and_forgetting_the_last_owner_too(place):
    lines_of(place, ROWS)
    erase(place)
    assert erase(place) == (
        True,
        [
            "tombstone: " + tombstones.location() + "; every reader passes over these lines from now on",
            "nothing of it was found here",
        ],
    )
    erase(place, document=OTHER)
    assert not lines.shards(Artifact(place / "lines"), "test")


@pytest.mark.parametrize("moment", range(8))
def test_a_killed_erasure_is_finished_by_the_same_command(place, monkeypatch, moment):
    """Killed at the n-th rename: of the list, the journal, or a folder that is exchanged."""
    lines_of(place, ROWS[:5], ROWS[5:])
    artifacts.write_json(place / "selection/verdicts.json", {"note": GONE_ONLY[0]["text"]})
    artifacts.finish(place / "selection", kind="selection", config={}, metrics={})
    rename, count = Path.rename, iter(range(100))

    def killed(self, target):
        if next(count) == moment:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            erase(place)
    assert erase(place)[0]
    assert texts(Artifact(place / "lines")) == sorted(row["text"] for row in ROWS[5:])
    assert Artifact(place / "selection").read_json("verdicts.json") == {"note": "[forgotten]"}
    assert {path.name for path in place.iterdir()} == {"lines", "selection", "stages"}
    assert not list((place / "stages").iterdir())


def test_the_record_tells_what_was_done_and_names_nobody(place, tmp_path):
    lines_of(place, ROWS)
    erase(place)
    record = json.loads(next((tmp_path / "list/forgotten").glob("*.json")).read_text())
    assert record["lines"] == 5 and record["lines_kept_by_others"] == 1 and record["done"]["artifacts"] == 1
    assert GONE not in json.dumps(record, ensure_ascii=False) and GONE_ONLY[0]["line_id"] not in json.dumps(record)


def test_a_file_that_nobody_re_packs_is_said_to_be_left(place):
    lines_of(place, ROWS)
    (place / "notes.txt").write_text(f"see {GONE}")
    done, said = erase(place)
    assert not done and any(line.startswith(f"LEFT: {place / 'notes.txt'} holds it") for line in said)


# The search.

WORDS = st.text(st.characters(whitelist_categories=("L", "N", "P", "Zs"), max_codepoint=0x500), min_size=12, max_size=40).map(
    lambda text: " ".join(text.split())
).filter(lambda text: len(text) >= 12)  # fmt: skip


@given(WORDS, WORDS, WORDS)
def test_a_text_is_found_between_others_wherever_it_stands(before, text, after):
    found = Search((), (), {text}, ()).spans(f"{before}\n{text}\n{after}")
    assert (len(before) + 1, len(before) + 1 + len(text)) in found or any(
        begin <= len(before) + 1 for begin, _ in found
    )


def test_names_are_found_as_whole_words_only():
    search = Search((), {"document-1", "1"}, (), ())
    assert [search.in_page(text) for text in ("of document-1.", "document-10", "my document-1/2", "page 1")] == [
        True,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("change", ["jpeg", "smaller", "darker"])
def test_a_picture_is_found_again_after_it_was_changed_a_little_and_another_line_is_not_it(change):
    image = Image.fromarray(rendered.line(rendered.words(3), seed=3))
    buffer = io.BytesIO()
    changed = image.point(lambda value: value * 0.8) if change == "darker" else image
    changed.resize((image.width // 2, image.height // 2) if change == "smaller" else image.size).save(
        buffer, "JPEG", quality=50
    )
    search = Search((), (), (), {fingerprint(rendered.png(rendered.line(rendered.words(3), seed=3))).hex()})
    assert search.in_image(buffer.getvalue())
    assert not search.in_image(rendered.png(rendered.line(rendered.words(4), seed=4)))
    assert not search.in_image(b"no image at all")


def test_the_journal_of_an_erasure_can_be_read_by_its_owner_alone(tmp_path):
    doomed = doom.Doomed(tombstones.Tombstones(), rows={("a", "b", "c", "d")}, lines={"d"}, texts={"secret"})
    doom.save(doomed, tmp_path)
    assert (tmp_path / doom.JOURNAL).stat().st_mode & 0o077 == 0
    assert doom.load(tmp_path, tombstones.Tombstones()) == doomed


def test_weights_are_no_place_to_search(tmp_path):
    assert not redact.holds("encoder.safetensors", io.BytesIO(b"anything"), doom.Doomed(tombstones.Tombstones()))
    assert not list(repack.below(tmp_path))


# Versions of the data.


def dvc(folder: Path, *arguments: str) -> str:
    return history._dvc(*arguments, repository=folder)


def git(folder: Path, *arguments: str) -> str:
    return versions._call(["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments], folder)


def repository_of(folder: Path, *units: list[dict]) -> Path:
    """A repository with lines under DVC, pushed to a remote beside it."""
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet")
    dvc(folder, "init", "--quiet")
    dvc(folder, "remote", "add", "--quiet", "--default", "store", "../a remote")
    lines_of(folder, *units)
    dvc(folder, "add", "--quiet", "lines")
    dvc(folder, "push", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "lines")
    return folder


def objects(folder: Path) -> dict[str, bytes]:
    return {name: found for name, found in content(folder).items() if "files/md5" in name}


def hold_it(found: dict[str, bytes]) -> set[str]:
    doomed = Search({row["line_id"] for row in GONE_ONLY}, {GONE}, (), ())
    held = set()
    for name, body in found.items():
        text = (
            str(pq.read_table(io.BytesIO(body)).to_pylist()) if body[:4] == b"PAR1" else body.decode("utf-8", "replace")
        )
        if doomed.spans(text):
            held.add(name)
    return held


def test_old_versions_are_cleaned_in_cache_and_remote_and_what_another_repository_keeps_there_is_not_touched(
    place, tmp_path
):
    other = repository_of(tmp_path / "other", [row("Kept by another repository.", GONE, number=60)])
    mine = repository_of(place / "mine", ROWS[:6], ROWS[6:])
    # A version that nobody committed: its objects are in the cache alone, under no name.
    lines_of(mine, [*ROWS[:6], row("One more line.", "ledger", number=61)], ROWS[6:])
    dvc(mine, "add", "--quiet", "lines")
    shutil.copytree(tmp_path / "place/a remote", tmp_path / "a remote", dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "place/a remote")
    (place / "a remote").symlink_to(tmp_path / "a remote")  # both push to one
    before = objects(tmp_path / "a remote")
    others = objects(other)
    assert hold_it(objects(mine)) and len(hold_it(before)) > 2
    done, said = erase(place)
    assert done, said
    assert not hold_it(objects(mine))
    left = objects(tmp_path / "a remote")
    assert hold_it(left) == {name for name in hold_it(before) if f".dvc/cache/{name}" in others}
    assert before.items() - left.items() == {(name, before[name]) for name in hold_it(before) - hold_it(left)}
    assert (
        git(mine, "status", "--porcelain", "lines.dvc") == ""
        and git(mine, "log", "--format=%s").split("\n")[0] == "Forget what the list of tombstones names"
    )
    assert f"lines {Artifact(mine / 'lines').version}" in git(mine, "log", "-1", "--format=%B")
    assert json.loads(dvc(mine, "status", "--json")) == {}
    assert texts(Artifact(mine / "lines")) == sorted([*(row["text"] for row in ROWS[5:]), "One more line."])


def test_data_that_are_not_there_cannot_be_re_packed_and_a_remote_out_of_reach_is_said(place):
    mine = repository_of(place / "mine", ROWS)
    dvc(mine, "remote", "add", "--quiet", "far", "ssh://archive/data")
    shutil.rmtree(mine / "lines")
    with pytest.raises(ValueError, match="mine lacks lines/: run `dvc pull` there, then give the same command again"):
        erase(place)
    dvc(mine, "checkout", "--quiet")
    assert texts(Artifact(mine / "lines")) == sorted(row["text"] for row in ROWS[5:])  # hidden already
    done, said = erase(place)
    assert (
        done and not hold_it(objects(mine)) and "LEFT: remote ssh://archive/data cannot be searched from here" in said
    )


def test_a_folder_that_is_no_repository_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no git and DVC repository"):
        Places.of([], [tmp_path])


def test_a_name_goes_from_the_settings_of_a_manifest_and_from_a_model_card_and_the_rest_of_these_stays(place):
    lines_of(place, ROWS)
    card = f"| fine-tuning | {GONE} | CC0 |\n| fine-tuning | {OTHER} | CC-BY |\n"
    for name, body in (("evaluation", None), ("papers", card)):
        (place / name).mkdir()
        (place / name / "data.json").write_text("{}\n")
        if body:
            (place / name / "model_card.md").write_text(body)
        settings = {"gate": {"slices": [f"source={GONE}", f"source={OTHER}"]}} if not body else {}
        artifacts.finish(place / name, kind=name, config=settings, metrics={"kept": 1.0})
    done, _ = erase(place)
    manifest = Artifact(place / "evaluation").manifest
    assert done and manifest["config"] == {"gate": {"slices": ["source=[forgotten]", f"source={OTHER}"]}}
    assert manifest["metrics"] == {"kept": 1.0}
    card = (place / "papers" / "model_card.md").read_text()
    assert card == f"| fine-tuning | [forgotten] | CC0 |\n| fine-tuning | {OTHER} | CC-BY |\n"


def test_a_summary_that_another_maskocr_wrote_leaves_the_pages_to_be_removed():
    summary = {"verdict": {"verdict": "first", "reason": "", "lines": []}, "starts": [], "documents": 3, "lines": 9}
    assert repack.report(summary) == {}
    drawn = repack.report(summary | {"data_version": "3f9a"})
    assert set(drawn) == set(repack.REPORT) and b"Verdict: first" in drawn["report.html"]


def test_a_name_goes_from_what_the_gate_said_of_a_version_and_other_models_are_left_alone(place, tmp_path):
    lines_of(place, ROWS)
    client, name = tracking.connection(), "old_letters [of Mrs Kühn]"
    said = (
        f"**{GONE} (transfer)**: holds. **{OTHER}**: holds. **old\\_letters \\[of Mrs Kühn\\]**: it \\[holds\\] &lt; 1."
    )
    for model, tags in (("ours", {"verdict_digest": "a" * 64}), ("theirs", {})):
        client.create_registered_model(model)
        client.create_model_version(model, f"file://{tmp_path}/no-weights", tags=tags)
        client.update_model_version(model, "1", said)
    doomed = doom.resolve(
        repack.shards(Artifact(place / "lines")),
        tombstones.of([tombstones.entry("asked", tombstones.ANY_SOURCE, GONE)]),
    )
    escaped = doom.Doomed(doomed.hidden, names={GONE, name})
    assert redact.markdown_without(said, escaped) == (
        f"**[forgotten] (transfer)**: holds. **{OTHER}**: holds. **[forgotten]**: it \\[holds\\] &lt; 1."
    )
    assert list(tracked.clean(doomed, "2026-11-27")) == [("model ours", "description of version 1", "rewritten")]
    assert client.get_model_version("ours", "1").description == said.replace(GONE, "[forgotten]")
    assert client.get_model_version("theirs", "1").description == said


def test_a_picture_of_training_goes_from_its_run_where_the_list_beside_it_names_a_line_to_be_forgotten(
    place, tmp_path, monkeypatch
):
    monkeypatch.setenv("MASKOCR_RUN", "one")
    rows = lines_of(place, ROWS)
    ids = {line["text"].split()[0]: [line["line_id"]] for line in lines.index(rows, "test").to_pylist()}
    pictures, shown = tmp_path / "pictures", {"0.png": ids["Kühn"], "1.png": ids["Weber"]}
    for name in shown:
        artifacts.write_bytes(pictures / name, rendered.png(rendered.line("none of theirs", seed=0)))
    artifacts.write_json(pictures / "shown.json", shown)
    tracking.log_pictures(Registry(), "pretrain", pictures, set())
    doomed = doom.resolve(
        repack.shards(Artifact(place / "lines")),
        tombstones.of([tombstones.entry("asked", tombstones.ANY_SOURCE, GONE)]),
    )
    done = [(path, what) for _, path, what in tracked.clean(doomed, "2026-11-27")]
    assert sorted(done) == [("pretrain/0.png", "removed"), ("pretrain/shown.json", "rewritten")]
    home = f"runs:/{tracking.run_id(Registry())}"
    assert set(logged.files(home)) == {"pretrain/1.png", "pretrain/shown.json"}
    assert json.loads(logged.read(home, "pretrain/shown.json")) == {"0.png": [], "1.png": shown["1.png"]}
