"""What every stage gets from `@stage`: reuse, resume, publishing whole or not at all."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import packed
import pytest
from conftest import run_stage

from maskocr_core import artifacts, config, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.stages import keys

LONG = ["pretrain.steps=200", "pretrain.checkpoint_every=2"]


def test_a_stage_whose_inputs_did_not_change_is_reused(road, raw, smoke, capsys):
    first = run_stage("quantize", smoke, raw, road["root"], codebook_out=Path("a"))
    again = run_stage("quantize", smoke, raw, road["root"], codebook_out=Path("b"))
    assert "reused" in capsys.readouterr().err
    assert first == again
    assert Artifact(Path("a")).version == Artifact(Path("b")).version


def test_an_input_that_is_left_out_is_the_same_work_as_its_default_given(road, smoke, tmp_path, capsys):
    inputs = {name: road[name] for name in ("lines", "selection")}
    stages.get("quantize")(smoke, **inputs, codebook_out=tmp_path / "codebook")
    stages.get("quantize")(smoke, **inputs, encoder_uri="", codebook_out=tmp_path / "again")
    assert capsys.readouterr().err.count("reused") == 1


def test_another_knob_that_the_stage_reads_makes_new_work_and_one_that_it_does_not_read_makes_none(road, raw, capsys):
    def quantized(override):
        run_stage("quantize", config.load("smoke", [override]), raw, road["root"], codebook_out=Path("out"))
        return "reused" in capsys.readouterr().err

    assert not quantized("codebook.seed=0")
    assert quantized("sweep.steps=12")
    assert not quantized("codebook.seed=1")


def test_changed_code_that_a_stage_can_reach_changes_its_version_and_other_code_does_not():
    reached = {path.name for path in keys.sources("quantize")}
    assert {"quantize.py", "codebook.py", "lines.py", "images.py", "config.py"} <= reached
    assert not {"report.py", "loop.py", "sweep.py", "recipes.py"} & reached
    tuned = {path.name for path in keys.sources("finetune")}
    assert "sweep.py" in tuned and not {"tracking.py", "progress.py"} & tuned  # they tell of results


def test_a_stage_that_fails_leaves_nothing_at_its_output(raw, smoke, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError):
        stages.get("ingest")(smoke, data_uri=str(tmp_path / "empty"), lines_out=tmp_path / "lines")
    assert not (tmp_path / "lines").exists()


def test_a_folder_without_a_manifest_is_no_input(smoke, road, tmp_path):
    (tmp_path / "lines").mkdir()
    with pytest.raises(ValueError, match="has no manifest.json.*has not finished"):
        stages.get("validate")(smoke, lines=tmp_path / "lines", validation_out=tmp_path / "out")


def test_an_artifact_of_another_kind_is_no_input(smoke, road, tmp_path):
    with pytest.raises(
        ValueError, match="/selection holds selection, and lines is asked for: give the folder that has that"
    ):
        stages.get("validate")(smoke, lines=road["selection"], validation_out=tmp_path / "out")


def test_a_selection_of_other_lines_is_refused(smoke, road, raw, tmp_path):
    other = packed.pack(tmp_path / "other", {"unlabeled": packed.short_lines(8, seed=0)})
    with pytest.raises(ValueError, match="selects lines that .* does not hold: run validate and fit again"):
        stages.get("quantize")(smoke, lines=road["lines"], selection=other[1], codebook_out=tmp_path / "out")


@pytest.mark.parametrize(
    "before, after", [(0, 0), *(pytest.param(*hands, marks=pytest.mark.cluster) for hands in ((2, 2), (2, 0), (0, 2)))]
)
def test_a_killed_pretraining_goes_on_from_its_checkpoint_with_any_workers_and_gives_the_same_encoder(
    road, tmp_path, before, after
):
    undisturbed = _pretrain(road["root"], tmp_path / "undisturbed", tmp_path / "work-a", after)
    assert undisturbed.wait() == 0
    killed = _pretrain(road["root"], tmp_path / "killed", tmp_path / "work-b", before)
    _kill_after_a_checkpoint(killed, tmp_path / "work-b")
    assert not (tmp_path / "killed").exists()
    again = _pretrain(road["root"], tmp_path / "killed", tmp_path / "work-b", after)
    assert again.wait() == 0
    resumed = Artifact(tmp_path / "killed")
    assert resumed.metrics["resumed_at"] > 0
    whole = Artifact(tmp_path / "undisturbed")
    assert whole.metrics["resumed_at"] == 0
    assert whole.read_bytes("encoder.safetensors") == resumed.read_bytes("encoder.safetensors")


@pytest.mark.namespace
def test_a_full_disk_says_so_and_leaves_nothing_half_written(raw, tmp_path):
    """A tiny file system in a user's own mount namespace, where the machine allows one."""
    room = tmp_path / "room"
    room.mkdir()
    script = f"mount -t tmpfs -o size=600k tmpfs {room} && cd {room} && {sys.executable} -m maskocr_core.cli ingest --recipe smoke --data-uri {raw / 'target'} --lines-out {room / 'lines'}; code=$?; ls -A {room}; exit $code"
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no mount namespace")
    done = subprocess.run(
        ["unshare", "-Urm", "bash", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"MASKOCR_WORK": str(room / "stages")},
    )
    assert done.returncode == 1
    assert "the disk is full" in done.stderr and "Traceback" not in done.stderr
    assert "lines" not in done.stdout.split()


def test_a_second_process_waits_for_the_first_instead_of_doing_the_same_work(road, tmp_path):
    first = _pretrain(road["root"], tmp_path / "first", tmp_path / "work")
    second = _pretrain(road["root"], tmp_path / "second", tmp_path / "work", stderr=subprocess.PIPE)
    assert (first.wait(), second.wait()) == (0, 0)
    assert Artifact(tmp_path / "first").version == Artifact(tmp_path / "second").version
    assert len(list((tmp_path / "work" / "pretrain").iterdir())) == 1


def test_what_a_killed_process_left_half_written_is_no_part_of_an_artifact(tmp_path):
    versions = []
    for name in ("undisturbed", "resumed"):
        artifacts.write_json(tmp_path / name / "sizes/facts.json", {})
        if name == "resumed":
            for left in (".weights.safetensors.4711", "sizes/.facts.json.12"):
                (tmp_path / name / left).write_bytes(b"half")
        versions.append(artifacts.finish(tmp_path / name, kind="encoder", config={}, metrics={}).version)
    assert versions[0] == versions[1]
    assert not [path for path in (tmp_path / "resumed").rglob(".*")]


def test_what_cannot_be_written_whole_leaves_nothing_behind(tmp_path, monkeypatch):
    def fails_midway(path, content):
        with path.open("wb") as file:
            file.write(content[:2])
        raise OSError(28, "No space left on device")

    artifacts.write_bytes(tmp_path / "facts", b"before")
    monkeypatch.setattr(Path, "write_bytes", fails_midway)
    with pytest.raises(OSError, match="No space left"):
        artifacts.write_bytes(tmp_path / "facts", b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["facts"]
    assert (tmp_path / "facts").read_bytes() == b"before"


def test_publishing_replaces_an_older_folder_whole(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, name in ((old, "a.json"), (new, "b.json")):
        folder.mkdir()
        artifacts.write_json(folder / name, {})
        artifacts.finish(folder, kind="thing", config={}, metrics={})
    artifacts.publish(old, tmp_path / "out")
    artifacts.publish(new, tmp_path / "out")
    assert Artifact(tmp_path / "out").names() == ["b.json"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_changed_file_is_noticed_on_reading(road, tmp_path):
    artifacts.publish(road["codebook"], tmp_path / "codebook")
    path = tmp_path / "codebook" / "codebook.json"
    content = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps(content | {"window": 8}))
    with pytest.raises(ValueError, match="was changed after it was written"):
        Artifact(tmp_path / "codebook").read_bytes("codebook.json")


def test_an_artifact_of_a_newer_format_is_refused(road, tmp_path):
    artifacts.publish(road["codebook"], tmp_path / "codebook")
    manifest = json.loads((tmp_path / "codebook" / "manifest.json").read_text())
    artifacts.write_json(tmp_path / "codebook" / "manifest.json", manifest | {"format_version": 99})
    with pytest.raises(ValueError, match="format_version 99 is none of"):
        Artifact(tmp_path / "codebook").names()


def _pretrain(root: Path, output: Path, work: Path, workers: int = 0, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "maskocr_core.cli", "pretrain", "--recipe", "smoke"]
    command += [part for override in (*LONG, f"pretrain.workers={workers}") for part in ("--set", override)]
    for name in ("lines", "selection", "codebook"):
        command += [f"--{name}", str(root / name)]
    return subprocess.Popen(
        [*command, "--encoder-out", str(output)], env=os.environ | {"MASKOCR_WORK": str(work)}, **options
    )


def _kill_after_a_checkpoint(process: subprocess.Popen, work: Path) -> None:
    deadline = time.monotonic() + 120
    while len(list(work.glob("pretrain/*/scratch/checkpoints/step-*.safetensors"))) < 2:  # the first one counts then
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before its first checkpoint"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_where_there_is_no_git_the_commit_is_what_the_image_says_of_itself(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert artifacts.code_commit() is None
    monkeypatch.setenv("MASKOCR_COMMIT", "f" * 40)
    assert artifacts.code_commit() == "f" * 40
