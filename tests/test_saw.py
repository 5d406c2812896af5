"""What a model says it was trained on."""

import packed
import pyarrow as pa
import pytest
import rendered

from maskocr_core import artifacts, config, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.data import lines as schema
from maskocr_core.data import tombstones
from maskocr_core.training import judged, pretraining, saw, sweep
from maskocr_core.training.reading import Candidate
from maskocr_core.training.saw import Saw


def content(count: int, seed: int) -> list:
    return [(rendered.words(seed + number), rendered.line("a", seed=seed + number)) for number in range(count)]


def test_the_documents_of_admitted_lines_are_seen_and_no_others(tmp_path):
    admitted = {"train": content(20, 0), "unlabeled": content(9, 100)}
    lines, selection = map(Artifact, packed.pack(tmp_path, admitted))
    seen = saw.of_lines(lines, selection, ["train"])
    documents = [f"train/document-{number}" for number in range(3)]
    assert seen == Saw(
        frozenset(tombstones.digest("rendered", document) for document in documents),
        pages=frozenset(tombstones.digest("rendered", document, document) for document in documents),
    )
    assert not saw.of_lines(lines, selection, ["unlabeled"]).pages
    without = tmp_path / "without"
    artifacts.write_json(without / "nothing.json", {})
    artifacts.finish(without, kind="selection", config={}, metrics={})
    assert saw.of_lines(lines, Artifact(without), ["train", "unlabeled"]) == Saw()


def test_what_was_seen_is_read_back_and_a_model_that_does_not_say_is_not_known(tmp_path):
    seen = Saw(frozenset({"b", "a"}), pages=frozenset({"p"}))
    seen.write(tmp_path)
    assert saw.read(tmp_path) == seen
    assert saw.read(tmp_path / "absent") == Saw(complete=False)
    assert seen | saw.read(tmp_path / "absent") == Saw(frozenset({"a", "b"}), False, frozenset({"p"}))


def forgetting(function, document: str):
    """`function`, after which a document is forgotten."""

    def wrapped(*arguments, **named):
        result = function(*arguments, **named)
        tombstones.add([tombstones.entry("asked", "rendered", document)])
        return result

    return wrapped


@pytest.fixture
def packs(tmp_path):
    """(lines, selection) of short lines that know their documents, as ingest leaves them."""
    counts = {"train": 24, "val": 8, "unlabeled": 32}
    content = {split: packed.short_lines(count, seed=count) for split, count in counts.items()}
    lines, selection = packed.pack(tmp_path, content)
    documents = [f"{split}/document-{number // 8}" for split, count in counts.items() for number in range(0, count, 8)]
    owned = pa.table({"source": ["rendered"] * len(documents), "document_id": documents})
    schema.write(owned, lines / "documents.parquet")
    artifacts.finish(lines, kind="lines", config={}, metrics={})
    return lines, selection


def trained(packs, home):
    """Folders of an encoder and of a recogniser from scratch."""
    changes = ("pretrain.workers=0", "sweep.jobs=0", 'sweep.starts=["scratch"]', "sweep.steps=8")
    settings = config.load("smoke", changes)
    lines, selection = packs
    book = packed.quantized(home / "codebook", packs, settings)
    inputs = {"lines": lines, "selection": selection}
    stages.get("pretrain")(settings, **inputs, codebook=book, encoder_out=home / "encoder")
    stages.get("finetune")(settings, **inputs, encoder=home / "encoder", recognizers_out=home / "recognizers")
    (recognizer,) = (home / "recognizers").glob("scratch-*")
    return home / "encoder", recognizer


def test_what_is_forgotten_while_a_model_trains_was_seen_all_the_same(packs, tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "train", forgetting(pretraining.train, "unlabeled/document-0"))
    monkeypatch.setattr(sweep, "carry_out", forgetting(sweep.carry_out, "train/document-0"))
    encoder, recognizer = trained(packs, tmp_path)
    for folder, document in ((encoder, "unlabeled/document-0"), (recognizer, "train/document-0")):
        assert tombstones.digest("rendered", document) in saw.read(folder).documents


def test_a_recogniser_is_trained_anew_on_what_is_left_after_something_was_forgotten(packs, tmp_path, capsys):
    trained(packs, tmp_path / "before")
    tombstones.add([tombstones.entry("asked", "rendered", "train/document-0")])
    _, recognizer = trained(packs, tmp_path / "after")
    assert "made before, reused" not in capsys.readouterr().out
    assert tombstones.digest("rendered", "train/document-0") not in saw.read(recognizer).documents


def test_a_start_saw_the_target_and_what_it_started_from():
    parts = {name: Saw(frozenset({name})) for name in ("target", "encoder", "transfer")}
    seen = {start: sweep.seen(start, parts).documents for start in ("scratch", "transfer", "pretrained", "both")}
    assert seen == {
        "scratch": {"target"},
        "transfer": {"target", "transfer"},
        "pretrained": {"target", "encoder"},
        "both": {"target", "encoder", "transfer"},
    }


@pytest.fixture
def leaking(tmp_path):
    """`judged._leak` of test lines for a model that saw what is given; document `book` has pages in train and in test."""
    placed = {"train": [("book", "1"), ("own", "1")], "val": [("else", "1")], "test": [("book", "2"), ("new", "1")]}
    for number, (split, places) in enumerate(placed.items()):
        rows = []
        for document, page in places:
            image = rendered.png(rendered.line("a", seed=100 * number + len(rows)))
            at = {"source": "s", "document_id": document, "page_id": f"{document}/{page}"}
            rows.append(at | {"line_id": schema.line_id(image), "image": image, "height": 40, "width": 90, "text": "a"})
        schema.write(pa.Table.from_pylist(rows, schema=schema.SCHEMA), tmp_path / f"lines/{split}/part-0.parquet")
        chosen = [{"line_id": row["line_id"], "weight": 1.0} for row in rows]
        schema.write(
            pa.Table.from_pylist(chosen, schema=schema.SELECTION), tmp_path / f"selection/{split}/part-0.parquet"
        )
    for kind in ("lines", "selection"):
        artifacts.finish(tmp_path / kind, kind=kind, config={}, metrics={})
    lines, selection = Artifact(tmp_path / "lines"), Artifact(tmp_path / "selection")
    inputs = judged.Inputs(lines, lines, selection, tmp_path, None)
    own = saw.of_lines(lines, selection, ["train", "val"])
    return lambda more: judged._leak(inputs, inputs.of_split("test", config.load("smoke").data), own | more)


def test_new_pages_of_known_documents_are_no_leak_and_are_said(leaking):
    check = leaking(Saw())
    assert check.verdict == "holds" and check.blocks
    assert check.reason.startswith("No test page is among those of training. 1 of 2 have other pages there")


@pytest.mark.parametrize(
    "more",
    [
        Saw(frozenset({tombstones.digest("s", "new")})),
        Saw(pages=frozenset({tombstones.digest("s", "book", "book/2")})),
    ],
)
def test_a_test_document_or_a_test_page_that_was_trained_on_is_a_leak(leaking, more):
    check = leaking(more)
    assert check.verdict == "broken" and "1 of 2 test documents are among" in check.reason


def test_a_model_that_does_not_say_what_it_saw_leaves_the_verdict_open(leaking):
    check = leaking(Saw(complete=False))
    assert check.verdict == "undecided" and check.blocks and "does not say which documents" in check.reason


@pytest.mark.parametrize(
    ("start", "verdict", "weight", "standing"),
    [
        ("pretrained", "undecided", 0.5, "broken"),
        ("both", "undecided", 0.5, "broken"),
        ("pretrained", "undecided", 0.0, "holds"),  # not trained on
        ("pretrained", "accept", 1.0, "holds"),
        ("transfer", "undecided", 0.5, None),  # saw no unlabelled line
    ],
)
def test_a_source_of_pretraining_that_is_not_known_to_fit_holds_a_candidate_back(
    leaking, tmp_path, start, verdict, weight, standing
):
    lines, selection = Artifact(tmp_path / "lines"), Artifact(tmp_path / "selection")
    inputs = judged.Inputs(lines, lines, selection, tmp_path, None)
    source = inputs.of_split("test", config.load("smoke").data)
    told = [{"source": "attic", "verdict": verdict, "weight": weight}]
    checks = judged.data_checks(inputs, source, Candidate(start, 0, "none", 0), told)
    (found,) = [check for check in checks if check.name == "data that fit"] or [None]
    assert (found and found.verdict) == standing
    assert standing != "broken" or (found.blocks and "nobody knows whether they fit: attic" in found.reason)


@pytest.mark.parametrize(
    ("asked", "there", "made"),
    [((100, 300), 1000, (100, 300)), ((100, 300, 1000), 250, (100, 300)), ((300, 250), 250, (250,)), ((9, 8), 4, (8,))],
)
def test_budgets_that_no_line_is_left_for_are_made_once(asked, there, made, capsys):
    settings = config.load("smoke", [f"sweep.budgets={list(asked)}"])
    assert sweep.within(settings, there).sweep.budgets == made
    assert len(capsys.readouterr().out.splitlines()) == sum(budget > there for budget in asked)
