"""The whole road on rendered lines, in this process."""

import json

from conftest import run_stage

from maskocr_core import artifacts, config
from maskocr_core.artifacts import Artifact
from maskocr_core.training import checkpoint


def test_every_stage_leaves_an_artifact_that_says_what_it_holds(road):
    for name in (
        "lines",
        "validation",
        "selection",
        "codebook",
        "encoder",
        "recognizers",
        "evaluation",
        "registration",
    ):
        artifact = Artifact(road[name])
        assert artifact.manifest["kind"] == name
        assert artifact.names() and len(artifact.version) == 64
        for entry in artifact.manifest["files"]:
            artifact.read_bytes(entry["name"])  # verifies the digest


def test_the_source_that_is_noise_is_refused_and_the_own_one_selected(road):
    verdicts = {row["source"]: row["verdict"] for row in json.loads((road["selection"] / "verdicts.json").read_text())}
    assert verdicts["noise"] == "reject"
    assert verdicts["rendered"] in ("accept", "down-weight")


def test_the_summary_has_the_four_starts_under_one_rule(road):
    summary = json.loads((road["evaluation"] / "summary.json").read_text())
    assert [row["start"] for row in summary["starts"]] == ["scratch", "transfer", "pretrained", "both"]
    assert len({row["steps"] for row in summary["starts"]}) == 1
    assert len({tuple(step for step, _ in row["curve"]) for row in summary["starts"]}) == 1
    assert summary["starts"][0]["cpu_minutes"]["pretrain"] == 0 < summary["starts"][2]["cpu_minutes"]["pretrain"]
    assert summary["verdict"]["verdict"] == "first"


def test_a_trained_recognizer_serves_in_the_place_of_transfer_lines_and_keeps_its_own_size(road, raw, tmp_path):
    """Its vocabulary is kept and widened; `both`, which trains on transfer lines, is left out."""
    configuration = config.load("smoke", ["pretrain.workers=0", "model.width=48", 'sweep.starts=["transfer", "both"]'])
    given = road["recognizers"] / "transfer-0" / "all"
    root = tmp_path / "road"
    for name in ("lines", "selection", "codebook"):
        artifacts.publish(road[name], root / name)
    run_stage("pretrain", configuration, raw, root)
    run_stage("finetune", configuration, raw, root, transfer_uri=str(given))
    run = Artifact(root / "recognizers").read_json("runs.json")["runs"]
    assert [row["name"] for row in run] == ["transfer"] and run[0]["new_characters"] == 0
    _, before = checkpoint.load_recognizer(given)
    _, after = checkpoint.load_recognizer(root / "recognizers" / "transfer-0" / "all")
    assert (after["model"], after["characters"]) == (before["model"], before["characters"])
