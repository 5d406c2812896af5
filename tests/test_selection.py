import json

import numpy as np
import pyarrow as pa
import pytest
import rendered

from maskocr_core import artifacts, config, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.data import admitted, tombstones
from maskocr_core.data import lines as schema
from maskocr_core.data.domain_fit import features, sampling


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


def fit(root, rows, *overrides, quarantined=(), transfer=()) -> Artifact:
    """Ingest these rows and run the stage, with a quarantine of these lines."""
    smoke = config.load("smoke", ["fit.features=strokes", *overrides])
    rendered.parquet(root / "pack/lines.parquet", rows)
    if transfer:
        rendered.parquet(root / "transfer/lines.parquet", transfer)
    stages.get("ingest")(
        smoke,
        data_uri=str(root / "pack"),
        transfer_uri=str(root / "transfer") if transfer else "",
        lines_out=root / "lines",
    )
    quarantine(root / "validation", quarantined)
    stages.get("fit")(smoke, lines=root / "lines", validation=root / "validation", selection_out=root / "selection")
    return Artifact(root / "selection")


def quarantine(folder, identities=()) -> Artifact:
    """What validate would leave, with these lines in quarantine."""
    schema.write(pa.table({"line_id": pa.array(list(identities), pa.string())}), folder / "quarantine.parquet")
    return artifacts.finish(folder, kind="validation", config={}, metrics={})


def selected(selection, split="unlabeled") -> dict[str, float]:
    tables = schema.read_tables(selection, f"{split}/")
    return {row["line_id"]: row["weight"] for table in tables for row in table.to_pylist()}


def verdicts(selection) -> dict[str, dict]:
    return {record["source"]: record for record in selection.read_json("verdicts.json")}


def identities(rows) -> set[str]:
    return {schema.line_id(row["image"]) for row in rows}


def files(artifact) -> dict[str, str]:
    return {entry["name"]: entry["sha256"] for entry in artifact.manifest["files"]}


@pytest.fixture(scope="module")
def judged(kinds, tmp_path_factory):
    root = tmp_path_factory.mktemp("judged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKOCR_WORK", str(root / "stages"))
        patch.setenv("MASKOCR_MAP", "inline")
        return fit(root, sum(kinds.values(), []))


@pytest.fixture(autouse=True)
def inline(monkeypatch):
    monkeypatch.setenv("MASKOCR_MAP", "inline")


def test_a_source_of_noise_gets_no_line_and_its_verdict_says_why(judged, kinds):
    found = verdicts(judged)
    assert found["noise"]["verdict"] == "reject" and found["noise"]["reasons"]
    assert found["rendered"]["verdict"] in ("accept", "down-weight")
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


def test_a_selection_has_the_shards_of_its_lines_and_training_reads_it(judged):
    artifact = Artifact(judged.folder.parent / "lines")
    assert set(judged.names(suffix=".parquet")) <= set(artifact.names(suffix=".parquet"))
    table = admitted.selected(artifact, judged, "unlabeled")
    assert dict(zip(table["line_id"].to_pylist(), table["weight"].to_pylist())) == selected(judged)


def test_the_selection_of_a_shard_is_sorted_and_names_a_line_once(judged):
    for name in judged.names(suffix=".parquet"):
        found = schema.read_table(judged, name)["line_id"].to_pylist()
        assert found == sorted(set(found))


def test_a_record_says_how_many_lines_there_are_and_how_many_are_selected(judged, kinds):
    found = verdicts(judged)
    assert found["rendered"]["lines"] == len(kinds["like"]) and found["noise"]["lines"] == len(kinds["noise"])
    assert found["rendered"]["selected"] == len(selected(judged)) and found["noise"]["selected"] == 0
    assert found["rendered"]["sampled"]["documents"] == 6
    assert found["rendered"]["mean_weight"] == pytest.approx(np.mean(list(selected(judged).values())), abs=1e-6)
    assert {"source", "verdict", "weight", "lines", "coverage", "kid_ratio", "reasons"} <= set(found["noise"])


def test_test_lines_never_influence_what_is_selected(judged, kinds, tmp_path):
    exchanged = kinds | {"test": rendered.rows(documents=3, lines=8, split="test", font="roboto", seed=33, degrade=1.0)}
    other = fit(tmp_path, sum(exchanged.values(), []))
    assert identities(kinds["test"]).isdisjoint(selected(other, "test"))
    assert other.read_json("verdicts.json") == judged.read_json("verdicts.json")
    for split in ("train", "val", "unlabeled"):
        assert selected(other, split) == selected(judged, split)


def test_quarantined_lines_have_no_part_in_the_verdict_nor_in_the_selection(kinds, tmp_path):
    bad = identities(kinds["noise"][:20])
    selection = fit(tmp_path, sum(kinds.values(), []), quarantined=bad | identities(kinds["val"]))
    found = verdicts(selection)["noise"]
    assert (found["lines"], found["quarantined"], found["sampled"]["lines"]) == (36, 20, 16)
    assert selected(selection, "val") == {} and not set(selected(selection)) & bad


def test_a_source_of_which_every_line_is_in_quarantine_has_no_verdict(kinds, tmp_path):
    selection = fit(tmp_path, sum(kinds.values(), []), quarantined=identities(kinds["noise"]))
    assert list(verdicts(selection)) == ["rendered"]


def test_a_document_that_is_forgotten_has_no_part_in_the_selection(kinds, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKOCR_TOMBSTONES", str(tmp_path / "tombstones.json"))
    gone = {row["doc"] for row in kinds["like"][:8]}
    entry = {"document": "", "at": "2026-01-01T00:00:00Z", "reason": "asked"}
    tombstones.add([entry | {"digest": tombstones.digest("rendered", document)} for document in gone])
    selection = fit(tmp_path, sum(kinds.values(), []))
    assert not set(selected(selection)) & identities(kinds["like"][:8])
    assert verdicts(selection)["rendered"]["lines"] == len(kinds["like"]) - 8


def test_inline_and_processes_give_the_same_bytes(judged, kinds, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKOCR_MAP", "processes")
    monkeypatch.setenv("MASKOCR_JOBS", "2")
    assert files(fit(tmp_path, sum(kinds.values(), []))) == files(judged)


def test_a_sample_is_bounded_and_the_same_whichever_shard_a_line_lies_in(kinds, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "SOURCE_LINES", 20)
    monkeypatch.setattr(sampling, "TURNED_LINES", 5)
    chosen = []
    validation = quarantine(tmp_path / "validation")
    rendered.parquet(tmp_path / "pack/lines.parquet", sum(kinds.values(), []))
    for name, shard_lines in (("small", 16), ("large", 512)):
        smoke = config.load("smoke", [f"data.shard_lines={shard_lines}"])
        stages.get("ingest")(smoke, data_uri=str(tmp_path / "pack"), lines_out=tmp_path / name / "lines")
        inputs = (Artifact(tmp_path / name / "lines"), validation)
        found = sampling.sample(*inputs, features.described, tmp_path / name / "looked")
        chosen.append({source: sorted(lines.line_ids) for source, lines in found.sources.items()})
        assert all(0 < len(lines.turned_rows) < len(lines.line_ids) < 40 for lines in found.sources.values())
    assert chosen[0] == chosen[1]


def test_texts_of_a_transfer_source_in_another_language_are_warned_of(kinds, tmp_path, capsys):
    transfer = rendered.rows(documents=4, lines=12, split="train", source="elsewhere", seed=8)
    transfer += rendered.rows(documents=1, lines=6, split="val", source="elsewhere", seed=9)
    for row in transfer:
        row["text"] = row["text"].translate(str.maketrans("aeiou", "αεηου"))
    (found,) = fit(tmp_path, sum(kinds.values(), []), transfer=transfer).read_json("texts.json")
    assert found["source"] == "elsewhere" and found["lines"] == 48 and found["warnings"]
    assert "fit: warning: texts of elsewhere: " in capsys.readouterr().out


def test_without_unlabelled_lines_the_error_says_what_to_bring(kinds, tmp_path):
    rows = kinds["train"][:64] + kinds["val"] + kinds["test"]
    with pytest.raises(ValueError, match="no unlabelled line to pre-train on: add images without text"):
        fit(tmp_path, rows)


def test_where_nothing_is_accepted_the_error_says_so_and_nothing_is_published(kinds, tmp_path, capsys):
    rows = kinds["train"] + kinds["val"] + kinds["test"] + kinds["noise"]
    with pytest.raises(ValueError, match="no unlabelled line was accepted.*fit.html"):
        fit(tmp_path, rows)
    assert "fit: noise: reject" in capsys.readouterr().out
    assert not (tmp_path / "selection").exists()


def test_too_few_labelled_documents_leave_a_source_undecided_at_half_weight(kinds, tmp_path):
    rows = kinds["train"][:64] + kinds["val"] + kinds["test"] + kinds["like"]
    selection = fit(tmp_path, rows)
    (record,) = selection.read_json("verdicts.json")
    assert record["verdict"] == "undecided" and "more document" in record["reasons"][-1]
    assert set(selected(selection).values()) == {0.5} and len(selected(selection)) > 0.9 * len(kinds["like"])


def test_a_champion_is_asked_for_by_name_only_where_there_is_one(kinds, tmp_path):
    with pytest.raises(ValueError, match="has no champion: promote a model"):
        fit(tmp_path, sum(kinds.values(), []), "fit.features=champion")


def test_the_champions_encoder_describes_the_lines_where_there_is_one(kinds, tmp_path, monkeypatch):
    from maskocr_core.model.recognizer import Recognizer
    from maskocr_core.model.vocabulary import Vocabulary
    from maskocr_core.services import registered
    from maskocr_core.training import checkpoint

    smoke = config.load("smoke")
    recognizer = Recognizer(checkpoint.new_encoder(smoke.model, smoke.data.height), Vocabulary("abc"))
    checkpoint.save_recognizer(recognizer, smoke.model, smoke.data, tmp_path / "champion")
    monkeypatch.setattr(registered, "version_of", lambda registry, alias: "7" if alias == "champion" else None)
    monkeypatch.setattr(registered, "recognizer_folder", lambda uri: tmp_path / "champion")
    monkeypatch.setattr(sampling, "TURNED_TARGET_SHARE", 0.0)
    selection = fit(tmp_path, sum(kinds.values(), []), "fit.features=auto")
    assert selection.read_json("yardstick.json")["features"] == "models:/maskocr/7"
    assert verdicts(selection)["noise"]["verdict"] == "reject" and selected(selection)
    before = json.dumps(selection.read_json("verdicts.json"))
    monkeypatch.setattr(registered, "version_of", lambda registry, alias: None)
    again = fit(tmp_path / "again", sum(kinds.values(), []), "fit.features=auto")
    assert again.read_json("yardstick.json")["features"] == "strokes"
    assert json.dumps(again.read_json("verdicts.json")) != before


def test_an_unknown_kind_of_features_is_refused():
    with pytest.raises(ValueError, match="fit.features"):
        config.load("smoke", ["fit.features=pixels"])


@pytest.mark.cluster
def test_ray_tasks_give_the_same_bytes(judged, kinds, tmp_path, monkeypatch):
    import nodes

    monkeypatch.setenv("MASKOCR_MAP", "ray")
    monkeypatch.setenv("MASKOCR_JOBS", "2")
    monkeypatch.setenv("PYTHONPATH", nodes.PYTHONPATH)
    with nodes.one_node() as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert files(fit(tmp_path, sum(kinds.values(), []))) == files(judged)
