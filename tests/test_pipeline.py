"""The compiled pipeline under kfp.local: the same YAML that a cluster runs, on rendered lines."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY

from maskocr_core.artifacts import Artifact

PIPELINE = REPOSITORY / "pipelines" / "pretrain_finetune.yaml"


def run(raw: Path, work: Path, *overrides: str, transfer: bool = True) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "maskocr_core.cli",
        "run",
        str(PIPELINE),
        f"data_uri={raw / 'target'}",
        "recipe=smoke",
        f"overrides={json.dumps(['pretrain.workers=0', *overrides])}",
        "--root",
        str(work / "pipelines"),
    ]
    if transfer:
        command.append(f"transfer_uri={raw / 'transfer'}")
    environment = os.environ | {
        "MASKOCR_WORK": str(work / "stages"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{work / 'mlflow.db'}",
    }
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def outputs(work: Path, name: str) -> list[Artifact]:
    return [Artifact(path) for path in sorted(work.glob(f"pipelines/*/*/{name}")) if (path / "manifest.json").exists()]


@pytest.fixture(scope="module")
def finished(raw, tmp_path_factory) -> tuple[Path, str]:
    work = tmp_path_factory.mktemp("pipeline")
    process = run(raw, work)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return work, said


def test_the_pipeline_goes_from_raw_lines_to_a_registered_model(finished):
    work, said = finished
    for stage in ("ingest", "validate", "fit", "quantize", "pretrain", "finetune", "evaluate", "register"):
        assert f"{stage}: SUCCESS" in said
    registration = outputs(work, "registration_out")[0].read_json("registration.json")
    assert registration["alias"] == "challenger" and registration["verdict"] == "first"


def test_the_report_is_shown_by_kubeflow_too_and_lies_nowhere_twice(finished):
    work, _ = finished
    said = json.loads(next(work.glob("pipelines/*/evaluate/executor_output.json")).read_text())
    (shown,) = said["artifacts"]["report"]["artifacts"]
    assert Path(shown["uri"]) == outputs(work, "evaluation_out")[0].folder / "report.html"
    assert "Verdict: first" in Path(shown["uri"]).read_text()
    assert len(list(work.glob("pipelines/*/evaluate/**/report*"))) == 2  # with the picture


def test_the_data_version_is_in_the_manifest_on_the_mlflow_run_and_among_the_parameters_of_kfp(finished):
    import mlflow

    work, _ = finished
    version = outputs(work, "lines_out")[0].version
    said = json.loads(next(work.glob("pipelines/*/ingest/executor_output.json")).read_text())
    assert said["parameterValues"] == {"data_version": version}
    client = mlflow.MlflowClient(f"sqlite:///{work / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("maskocr")
    run = client.search_runs([experiment.experiment_id], "tags.`maskocr.kind` = 'pipeline'")[0]
    assert run.data.tags["version.lines"] == run.data.tags["data_version"] == version


def test_the_logs_show_what_runs_and_no_dump_of_the_orchestrator(finished):
    _, said = finished
    assert "executor_input" not in said and "KFP Executor" not in said and "\x1b[" not in said


def test_a_second_run_reuses_finished_stages_and_registers_nothing_twice(finished, raw):
    work, _ = finished
    process = run(raw, work)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert said.count("nothing it reads has changed, reused") == 7
    first, second = outputs(work, "evaluation_out")
    assert first.version == second.version
    assert "version 1 is this model with this verdict: nothing is registered twice" in said
    registrations = [artifact.read_json("registration.json") for artifact in outputs(work, "registration_out")]
    assert [one["version"] for one in registrations] == ["1", "1"]
    assert registrations[0]["parent_run"] != registrations[1]["parent_run"]  # each has its comparison


def test_a_run_killed_in_pretraining_resumes_there(raw, tmp_path):
    overrides = ("pretrain.steps=300", "pretrain.checkpoint_every=2")
    process = run(raw, tmp_path, *overrides)
    deadline = time.monotonic() + 240
    while (
        len(list(tmp_path.glob("stages/pretrain/*/scratch/checkpoints/step-*.safetensors"))) < 2
    ):  # the first one counts then
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not outputs(tmp_path, "encoder_out")
    process = run(raw, tmp_path, *overrides)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert outputs(tmp_path, "encoder_out")[0].metrics["resumed_at"] > 0


def test_without_transfer_lines_the_two_starts_that_need_them_are_left_out_and_said(raw, tmp_path):
    process = run(raw, tmp_path, transfer=False)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert "start 'transfer' is left out: there is no transfer_uri" in said
    summary = outputs(tmp_path, "evaluation_out")[0].read_json("summary.json")
    assert [row["start"] for row in summary["starts"]] == ["scratch", "pretrained"]


def test_a_mistake_in_the_overrides_ends_in_one_sentence_that_names_the_task(raw, tmp_path):
    process = run(raw, tmp_path, "pretrain.stepz=3")
    said, _ = process.communicate()
    assert process.returncode == 1
    last = said.strip().splitlines()[-1]
    assert last.startswith(
        "maskocr: task ingest of pipeline pretrain-finetune failed: ValueError: unknown field 'pretrain.stepz', did you mean 'steps'?"
    )


def test_the_pilot_prints_the_table_of_its_own_report_and_leaves_the_checkout_clean(raw, tmp_path):
    from maskocr_core.judging import comparison

    before = subprocess.run(
        ["git", "status", "--porcelain"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    command = [
        sys.executable,
        "-m",
        "maskocr_core.cli",
        "pilot",
        "--data",
        str(raw / "target"),
        "--transfer",
        str(raw / "transfer"),
    ]
    command += ["--recipe", "smoke", "--set", "pretrain.workers=0", "--work", str(tmp_path / "a folder")]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MASKOCR_WORK", "MLFLOW_TRACKING_URI")
    }
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = outputs(tmp_path / "a folder", "*/evaluation_out")[0].read_json("summary.json")
    assert comparison.table(summary) in done.stdout
    chosen = [row for row in summary["examples"] if row["start_name"] == summary["candidate"]]
    assert len(chosen) == 4 and all(f"written  {row['reference']}" in done.stdout for row in chosen)
    for told in ("Verdict: first", "report.html", "maskocr ui", "dvc pull brings it back", "noise reject"):
        assert told in done.stdout
    after = subprocess.run(
        ["git", "status", "--porcelain"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    assert after == before
