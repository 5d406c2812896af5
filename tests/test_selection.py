import numpy as np
import pyarrow as pa
import pytest
import rendered

from maskocr_core import artifacts, config, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.data import lines as schema


def noise(**about) -> list[dict]:
    """Lines of random pixels."""
    random, rows = np.random.default_rng(0), rendered.rows(split="unlabeled", source="noise", **about)
    for row in rows:
        row["image"] = rendered.png(random.integers(0, 255, (row["height"], row["width"]), dtype=np.uint8))
    return rows


@pytest.fixture(scope="module")
def kinds():
    """Rows by what they are for: enough labelled documents to compare with, lines like them, and lines of noise."""
    return {
        "train": rendered.rows(documents=20, lines=16, split="train", font="serif", seed=1),
        "val": rendered.rows(documents=2, lines=4, split="val", font="serif", seed=2),
        "test": rendered.rows(documents=2, lines=4, split="test", font="serif", seed=3),
        "like": rendered.rows(documents=6, lines=8, split="unlabeled", font="serif", seed=4),
        "noise": noise(documents=4, lines=9, seed=5),
    }


def fit(root, rows, *overrides, quarantined=()) -> Artifact:
    """Ingest these rows and run the stage, with a quarantine of these lines."""
    smoke = config.load("smoke", overrides)
    rendered.parquet(root / "pack/lines.parquet", rows)
    stages.get("ingest")(smoke, data_uri=str(root / "pack"), lines_out=root / "lines")
    table = pa.table({"line_id": pa.array(list(quarantined), pa.string())})
    schema.write(table, root / "validation/quarantine.parquet")
    artifacts.finish(root / "validation", kind="validation", config={}, metrics={})
    stages.get("fit")(smoke, lines=root / "lines", validation=root / "validation", selection_out=root / "selection")
    return Artifact(root / "selection")


def selected(selection, split="unlabeled") -> dict[str, float]:
    rows = schema.read_table(selection, "selection.parquet").to_pylist()
    return {row["line_id"]: row["weight"] for row in rows if row["split"] == split}


def identities(rows) -> set[str]:
    return {schema.line_id(row["image"]) for row in rows}


@pytest.fixture(scope="module")
def judged(kinds, tmp_path_factory):
    root = tmp_path_factory.mktemp("judged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKOCR_WORK", str(root / "stages"))
        return fit(root, sum(kinds.values(), []))


def test_a_source_of_noise_gets_no_line_and_its_verdict_says_why(judged, kinds):
    verdicts = {record["source"]: record for record in judged.read_json("verdicts.json")}
    assert verdicts["noise"]["verdict"] == "reject" and verdicts["noise"]["reasons"]
    assert verdicts["rendered"]["verdict"] in ("accept", "down-weight")
    assert not set(selected(judged)) & identities(kinds["noise"])
    assert judged.metrics["sources_reject"] == 1


def test_the_lines_like_the_target_are_selected_with_weights_up_to_one(judged, kinds):
    weights = selected(judged)
    assert set(weights) <= identities(kinds["like"]) and len(weights) > len(kinds["like"]) / 2
    assert all(0 < weight <= 1 for weight in weights.values())
    assert judged.metrics["lines_selected"] == len(weights)


def test_labelled_lines_are_all_selected_with_weight_one(judged, kinds):
    for split in ("train", "val", "test"):
        assert selected(judged, split) == dict.fromkeys(identities(kinds[split]), 1.0)


def test_the_selection_is_sorted_and_names_a_line_once(judged):
    found = schema.read_table(judged, "selection.parquet")["line_id"].to_pylist()
    assert found == sorted(set(found))


def test_test_lines_never_influence_what_is_selected(judged, kinds, tmp_path):
    exchanged = kinds | {"test": rendered.rows(documents=3, lines=8, split="test", font="roboto", seed=33, degrade=1.0)}
    other = fit(tmp_path, sum(exchanged.values(), []))
    assert identities(kinds["test"]).isdisjoint(selected(other, "test"))
    assert other.read_json("verdicts.json") == judged.read_json("verdicts.json")
    for split in ("train", "val", "unlabeled"):
        assert selected(other, split) == selected(judged, split)


def test_quarantined_lines_have_no_part_in_the_verdict_nor_in_the_selection(kinds, tmp_path):
    bad = identities(kinds["noise"])
    rows = sum(kinds.values(), [])
    selection = fit(tmp_path, rows, quarantined=bad | identities(kinds["val"]))
    assert [record["source"] for record in selection.read_json("verdicts.json")] == ["rendered"]
    assert selected(selection, "val") == {} and not set(selected(selection)) & bad


def test_without_unlabelled_lines_the_error_says_what_to_bring(kinds, tmp_path):
    rows = kinds["train"][:64] + kinds["val"] + kinds["test"]
    with pytest.raises(ValueError, match="no unlabelled line to pre-train on: add images without text"):
        fit(tmp_path, rows)


def test_where_nothing_is_accepted_the_error_says_so_and_nothing_is_published(kinds, tmp_path, capsys):
    rows = kinds["train"] + kinds["val"] + kinds["test"] + kinds["noise"]
    with pytest.raises(ValueError, match="no unlabelled line was accepted"):
        fit(tmp_path, rows)
    assert "fit: noise: reject" in capsys.readouterr().out
    assert not (tmp_path / "selection").exists()


def test_too_few_labelled_documents_leave_a_source_undecided_at_half_weight(kinds, tmp_path):
    rows = kinds["train"][:64] + kinds["val"] + kinds["test"] + kinds["like"]
    selection = fit(tmp_path, rows)
    (record,) = selection.read_json("verdicts.json")
    assert record["verdict"] == "undecided" and "more document" in record["reasons"][0]
    assert selected(selection) == dict.fromkeys(identities(kinds["like"]), 0.5)
