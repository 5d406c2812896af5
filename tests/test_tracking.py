"""MLflow on SQLite: runs that a person can compare, and a model that loads and reads."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import evaluated, run_stage

from maskocr_core import config
from maskocr_core.artifacts import Artifact
from maskocr_core.data import admitted, lines
from maskocr_core.reader import Reader
from maskocr_core.services import ledger


@pytest.fixture
def tracked(road, monkeypatch):
    """MLflow as the road left it, seen through a fresh client."""
    from maskocr_core.services import tracking

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{road['root'] / 'mlflow.db'}")
    return tracking.connection()


@pytest.fixture
def registration(road) -> dict:
    return Artifact(road["registration"]).read_json("registration.json")


def test_processes_that_start_together_make_one_database(tmp_path, monkeypatch):
    """Each finds either nothing or all of it; MLflow alone lets them meet in the middle of its migrations."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    program = "from maskocr_core.services import tracking; tracking.check()"
    processes = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[1] for process in processes] == [""] * 4
    assert [process.returncode for process in processes] == [0] * 4


def test_one_parent_run_has_one_summary_run_a_start(tracked, registration, road):
    parent = tracked.get_run(registration["parent_run"])
    assert parent.data.tags["maskocr.run"] == "road"
    assert set(registration["runs"]) == {"scratch", "transfer", "pretrained", "both"}
    children = tracked.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {run.info.run_id for run in children} == set(registration["runs"].values())
    summary = json.loads((road["evaluation"] / "summary.json").read_text())
    for row in summary["starts"]:
        run = tracked.get_run(registration["runs"][row["start"]])
        assert run.data.metrics["cer"] == pytest.approx(row["cer"]["all"]["value"])
        assert run.data.params["budget"] == str(row["budget"])
        assert len(run.data.metrics) <= 16
    made = Artifact(road["recognizers"]).read_json("runs.json")["runs"]
    for start, above in registration["runs"].items():
        mine = [own for own in made if own["name"] == start]
        below = tracked.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{above}'")
        found = sorted((run.data.params["seed"], run.data.params["learning_rate"]) for run in below)
        assert found == sorted((str(own["seed"]), str(own["learning_rate"])) for own in mine) and mine


def test_the_data_version_that_a_run_used_and_its_report_are_on_the_parent(tracked, registration, road):
    parent = tracked.get_run(registration["parent_run"])
    assert parent.data.tags["version.lines"] == Artifact(road["lines"]).version == parent.data.tags["data_version"]
    assert {"report.html", "report.png", "summary.json"} <= {
        file.path for file in tracked.list_artifacts(parent.info.run_id)
    }


def test_training_logs_its_progress_on_the_parent(tracked, registration):
    said = (
        "masked_loss",
        "visible_loss",
        "masked_accuracy",
        "masking_probability",
        "learning_rate",
        "lines_per_second",
    )
    for name in (*said, "padding", "data_wait"):
        history = tracked.get_metric_history(registration["parent_run"], f"pretrain/{name}")
        assert [point.step for point in history] == [8], name
    assert tracked.get_metric_history(registration["parent_run"], "finetune_scratch/loss")


def test_the_registered_model_loads_and_reads_the_evaluated_text(tracked, registration, road):
    import mlflow

    model = mlflow.pyfunc.load_model(f"models:/maskocr/{registration['version']}")
    images, read = evaluated(road, registration["start"])
    output = model.predict(pd.DataFrame({"image": images}))
    assert output["text"].tolist() == read
    assert output["confidence"].between(0, 1).all()


def test_the_version_says_verdict_start_and_data(tracked, registration, road):
    version = tracked.get_model_version_by_alias("maskocr", "challenger")
    assert version.tags["verdict"] == "first" and version.tags["start"] == registration["start"]
    assert version.tags["data_version"] == Artifact(road["lines"]).version
    assert "CER" in version.description
    said = version.description.replace("\\", "")  # which keep Markdown from reading a name as markup
    for line in json.loads((road["evaluation"] / "summary.json").read_text())["verdict"]["lines"]:
        assert f"**{line['name']}**: {line['verdict']}" in said and line["reason"] in said


def test_the_version_brings_its_card_its_settings_and_the_sources_with_their_licences(tracked, registration, road):
    import mlflow

    uri = f"models:/maskocr/{registration['version']}"
    card, said = (
        Path(mlflow.artifacts.download_artifacts(f"{uri}/artifacts/{name}")).read_text()
        for name in ("model_card.md", "provenance.json")
    )
    said, summary = json.loads(said), Artifact(road["evaluation"]).read_json("summary.json")
    assert said["config"] == config.load("smoke", ["pretrain.workers=0"]).model_dump(mode="json")
    versions = {name: Artifact(road[name]).version for name in ("lines", "selection", "recognizers", "evaluation")}
    assert said["data_versions"] == versions
    uses = {(row["use"], row["source"]): row for row in said["sources"]}
    documents = lines.read_table(Artifact(road["lines"]), "documents.parquet").to_pylist()
    assert uses["fine-tuning", "rendered"]["lines"] == sum(r["lines"] for r in documents if r["split"] == "train")
    assert ("pre-training", "noise") not in uses  # domain fit admitted nothing of it
    start = registration["start"]
    assert (("pre-training", "rendered") in uses) == (start in ("pretrained", "both"))
    assert (("transfer training", "other") in uses) == (start in ("transfer", "both"))
    for row in said["sources"]:
        licence = row["license"] or "not stated"
        assert f"| {row['use']} | {row['source']} | {licence} | {row['documents']:,} | {row['lines']:,} |" in card
    assert f"CER **{100 * summary['candidate_cer']['value']:.2f} %**" in card
    assert summary["verdict"]["reason"].split(",")[0] in card.replace("&#39;", "'")


def test_the_verdict_is_in_the_ledger_with_the_digest_of_the_summary_which_the_version_carries(
    tracked, registration, road
):
    (entry,) = ledger.read(str(road["root"] / "ledger")).demand_whole().entries
    assert (entry.kind, entry.model, entry.version) == ("verdict", "maskocr", registration["version"])
    assert (entry.verdict, entry.alias) == ("first", "challenger") and "no champion" in entry.reason
    assert entry.verdict_digest == hashlib.sha256((road["evaluation"] / "summary.json").read_bytes()).hexdigest()
    assert tracked.get_model_version("maskocr", entry.version).tags["verdict_digest"] == entry.verdict_digest


def test_who_decides_is_told_of_a_new_challenger_and_nobody_to_be_reached_costs_no_model(
    road, raw, smoke, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("MASKOCR_NOTIFY_COMMAND", f"tee {tmp_path}/message")
    monkeypatch.setenv("MASKOCR_NOTIFY_WEBHOOK", "http://127.0.0.1:9/hook")
    run_stage("register", smoke, raw, road["root"], registration_out=tmp_path / "out")
    assert "maskocr version 1 wants to be champion; the gate says first" in (tmp_path / "message").read_text()
    assert "nobody was told of the new challenger by MASKOCR_NOTIFY_WEBHOOK" in capfd.readouterr().err


@pytest.mark.parametrize("dies_at", ["describe_version", "record_verdict", "write_json"])
def test_a_run_that_dies_while_it_registers_goes_on_with_its_version(
    road, raw, smoke, tmp_path, monkeypatch, capsys, dies_at
):
    """Three places to die: a version without a verdict, one whose verdict the ledger lacks, one that nobody was told of."""
    from maskocr_core import artifacts, promotion
    from maskocr_core.services import registered, tracking

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setenv("MASKOCR_RUN", "dies")
    owner = {"describe_version": registered, "record_verdict": promotion, "write_json": artifacts}[dies_at]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, dies_at, die)
        run_stage("register", smoke, raw, road["root"], registration_out=tmp_path / "out")
    runs = [
        run_stage("register", smoke, raw, road["root"], registration_out=tmp_path / out) for out in ("out", "again")
    ]
    assert [figures["version"] for figures in runs] == [1, 1]
    assert "version 1 is this model with this verdict: nothing is registered twice" in capsys.readouterr().out
    said = [Artifact(tmp_path / out).read_json("registration.json") for out in ("out", "again")]
    assert said[0] == said[1] and said[0]["alias"] == "challenger"
    client = tracking.connection()
    (version,) = client.search_model_versions("name = 'maskocr'")
    (entry,) = ledger.read(ledger.place()).entries
    assert version.tags["verdict_digest"] == entry.verdict_digest and version.tags["verdict"] == entry.verdict
    assert "CER" in version.description and client.get_run(version.run_id).info.lifecycle_stage == "active"


def test_another_version_that_is_challenger_now_stays_so(road, raw, smoke, tmp_path):
    from maskocr_core.services import registered, tracking

    run_stage("register", smoke, raw, road["root"], registration_out=tmp_path / "out")
    other = smoke.registry.model
    tracking.connection().create_model_version(other, "models:/maskocr/1")
    registered.move_alias(smoke.registry, "challenger", "2")
    run_stage("register", smoke, raw, road["root"], registration_out=tmp_path / "again")
    assert Artifact(tmp_path / "again").read_json("registration.json")["alias"] is None
    assert registered.version_of(smoke.registry, "challenger") == "2"


def test_a_ledger_that_is_not_whole_gets_no_version_to_judge(road, raw, smoke, tmp_path):
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger/00000001.json").write_text("{")
    with pytest.raises(ValueError, match="00000001.json is damaged"):
        run_stage("register", smoke, raw, road["root"], registration_out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_reads_otherwise_than_evaluated_gets_no_version(road, raw, smoke, tmp_path):
    """The evaluation of one start, registered with the weights of another."""
    from maskocr_core import artifacts
    from maskocr_core.services import registered

    registration = Artifact(road["registration"]).read_json("registration.json")
    other = next(start for start in ("both", "transfer") if start != registration["start"])
    swapped = tmp_path / "recognizers"
    shutil.copytree(road["recognizers"], swapped)
    shutil.rmtree(swapped / f"{registration['start']}-0")
    shutil.copytree(road["recognizers"] / f"{other}-0", swapped / f"{registration['start']}-0")
    artifacts.finish(swapped, kind="recognizers", config={}, metrics=Artifact(road["recognizers"]).metrics)
    with pytest.raises(ValueError, match="differently from evaluation.*no version was made"):
        run_stage("register", smoke, raw, road["root"], recognizers=swapped, registration_out=tmp_path / "out")
    assert registered.version_of(smoke.registry, "challenger") is None
    assert not (tmp_path / "out").exists()


def test_a_candidate_that_the_gate_holds_is_registered_under_no_alias_and_nobody_is_called(
    road, raw, smoke, tmp_path, monkeypatch
):
    from maskocr_core import artifacts
    from maskocr_core.services import registered, tracking

    evaluation = tmp_path / "evaluation"
    shutil.copytree(road["evaluation"], evaluation)
    summary = json.loads((evaluation / "summary.json").read_text())
    summary["verdict"] |= {"verdict": "hold", "reason": "It reads worse."}
    artifacts.write_json(evaluation / "summary.json", summary)
    artifacts.finish(evaluation, kind="evaluation", config={}, metrics={})
    monkeypatch.setenv("MASKOCR_NOTIFY_COMMAND", f"tee {tmp_path}/message")
    run_stage("register", smoke, raw, road["root"], evaluation=evaluation, registration_out=tmp_path / "out")
    said = Artifact(tmp_path / "out").read_json("registration.json")
    assert (said["version"], said["verdict"], said["alias"]) == ("1", "hold", None)
    assert registered.version_of(smoke.registry, "challenger") is None and not (tmp_path / "message").exists()
    (entry,) = ledger.read(ledger.place()).entries
    assert (entry.verdict, entry.alias, entry.reason) == ("hold", None, "It reads worse.")
    assert tracking.connection().get_model_version("maskocr", "1").tags["verdict"] == "hold"


def test_a_champion_is_read_again_on_the_same_lines_and_decides_the_verdict(road, raw, smoke, tmp_path, tracked):
    tracked.set_registered_model_alias("maskocr", "champion", "1")
    try:
        run_stage("evaluate", smoke, raw, road["root"], evaluation_out=tmp_path / "evaluation")
    finally:
        tracked.delete_registered_model_alias("maskocr", "champion")
    summary = Artifact(tmp_path / "evaluation").read_json("summary.json")
    # The champion is the candidate itself: no difference can be seen, and that is no reason to promote.
    assert summary["verdict"]["verdict"] == "undecided"
    predictions = lines.read_table(Artifact(tmp_path / "evaluation"), "predictions.parquet").to_pandas()
    same = [predictions[predictions["start"] == start]["read"].tolist() for start in ("champion", summary["candidate"])]
    assert same[0] == same[1]


def test_read_prints_the_text_with_the_champion_else_the_challenger_else_a_folder_and_says_which(
    road, tracked, tmp_path
):
    registration = Artifact(road["registration"]).read_json("registration.json")
    image = tmp_path / "line.png"
    table = lines.index(Artifact(road["lines"]), "test")
    image.write_bytes(lines.images_of(Artifact(road["lines"]), "test", table["line_id"].to_pylist()[:1])[0])
    folder = road["recognizers"] / f"{registration['start']}-0" / "all"
    wanted = Reader(folder).read([image.read_bytes()])[0][0]

    def read(*arguments):
        command = [sys.executable, "-m", "maskocr_core.cli", "read", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)

    challenger = read(image)
    assert challenger.stdout == f"{image}\t{wanted}\n"
    assert "read by challenger, maskocr version 1" in challenger.stderr
    tracked.set_registered_model_alias("maskocr", "champion", "1")
    try:
        assert "read by champion, maskocr version 1" in read(tmp_path).stderr
    finally:
        tracked.delete_registered_model_alias("maskocr", "champion")
    assert read(image, "--model", folder).stdout == challenger.stdout
    (tmp_path / "broken.png").write_bytes(b"no image")
    mixed = read(tmp_path)
    assert mixed.returncode == 1 and f"{image}\t{wanted}" in mixed.stdout and "broken.png: no readable" in mixed.stderr


def test_read_without_any_model_says_what_to_do(tmp_path):
    (tmp_path / "line.png").write_bytes(b"")
    command = [sys.executable, "-m", "maskocr_core.cli", "read", str(tmp_path / "line.png")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 2
    assert (
        "has neither a champion nor a challenger of 'maskocr': run the pipeline first, or give --model FOLDER"
        in done.stderr
    )


def test_an_unreachable_tracking_server_is_said_in_one_sentence(road, raw, smoke, tmp_path, monkeypatch):

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(
        ValueError, match="MLflow at http://127.0.0.1:9 does not answer.*start it, or set MLFLOW_TRACKING_URI"
    ):
        run_stage("register", smoke, raw, road["root"], registration_out=tmp_path / "out")


def test_the_image_of_a_line_is_prepared_alike_in_training_and_reading(road):
    from maskocr_core.config import Data
    from maskocr_core.data import batches

    artifact = Artifact(road["lines"])
    table = admitted.selected(artifact, Artifact(road["selection"]), "test").slice(0, 1)
    source = batches.Lines(artifact, table, Data(height=32))
    from maskocr_core.data.images import prepare

    image = lines.images_of(artifact, "test", source.line_ids)[0]
    assert np.array_equal(source.pixels(0), prepare(image, 32, 2048))


def test_a_model_named_by_its_alias_is_keyed_by_its_version(road, tracked):
    from maskocr_core.services import registered

    assert registered.resolved("models:/maskocr@challenger") == "models:/maskocr/1"
    with pytest.raises(ValueError, match="has no model 'maskocr' with the alias 'champion'"):
        registered.resolved("models:/maskocr@champion")
