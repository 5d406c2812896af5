"""Stages as jobs of a Ray cluster elsewhere, at a real job server on loopback."""

import os
import shlex
import signal
import subprocess
import sys
import time

import nodes
import packed
import pytest
import servers

from maskocr_core import config, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.services import jobs

INPUTS = ("lines", "selection", "codebook")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    lines = packed.pack(folder, {"unlabeled": packed.short_lines(16, seed=0)})
    packed.quantized(folder / "codebook", lines, config.load("smoke"))
    return folder


@pytest.fixture(scope="module")
def server():
    with nodes.one_node(jobs=servers.free_ports(1)) as address:
        yield address


def pretrain(root, out, *changes):
    inputs = {name: root / name for name in INPUTS}
    return stages.get("pretrain")(config.load("smoke", ["pretrain.workers=0", *changes]), **inputs, encoder_out=out)


@pytest.mark.cluster
def test_a_stage_runs_as_a_job_and_leaves_what_it_leaves_here(root, server, tmp_path, monkeypatch, capfd):
    pretrain(root, tmp_path / "here")
    monkeypatch.setenv("RAY_ADDRESS", server)
    monkeypatch.setenv("MASKOCR_WORK", str(tmp_path / "elsewhere"))
    figures = pretrain(root, tmp_path / "there", "pretrain.workers=1")
    said = capfd.readouterr().err
    assert "submitted as job maskocr-pretrain-" in said and "pretrain.steps 8" in said  # what the command printed there
    assert figures["steps"] == 8
    one, other = (Artifact(tmp_path / name).read_bytes("encoder.safetensors") for name in ("here", "there"))
    assert one == other


@pytest.mark.cluster
def test_a_mistake_that_a_job_finds_is_told_as_it_is_here_and_the_next_try_is_a_new_job(
    root, server, tmp_path, monkeypatch
):
    monkeypatch.setenv("RAY_ADDRESS", server)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"^pretrain.probe_labels=8 asks for labelled .* \(job maskocr-pretrain-\w+ FAILED"
        ):
            pretrain(root, tmp_path / "out", "pretrain.probe_labels=8")


@pytest.mark.cluster
def test_whoever_asks_again_finds_the_job_that_is_at_the_work_and_follows_it(root, server, tmp_path, monkeypatch):
    changes = ["pretrain.workers=0", "pretrain.steps=100", "pretrain.checkpoint_every=2"]
    asked = [sys.executable, "-m", "maskocr_core.cli", "pretrain", "--recipe", "smoke"]
    asked += [word for change in changes for word in ("--set", change)]
    asked += [word for name in INPUTS for word in (f"--{name}", str(root / name))]
    asked += ["--encoder-out", str(tmp_path / "out")]
    environment = os.environ | {"RAY_ADDRESS": server}
    first = subprocess.Popen(asked, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("stages/pretrain/*/scratch/checkpoints/*.safetensors")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    again = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "is at this very work, following it" in again.stderr
    assert Artifact(tmp_path / "out").metrics["resumed_at"] == 0  # the job never stopped


def test_the_command_of_a_job_gives_the_same_configuration_and_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = ["pretrain.steps=9", 'data.columns={"page_id": "the page"}', "sweep.learning_rates=[0.001, 0.002]"]
    settings = config.load("smoke", changes)
    words = shlex.split(
        jobs.command("ingest", settings, {"data_uri": "raw", "transfer_uri": "", "lines_out": tmp_path / "x"})
    )
    assert words[:4] == ["maskocr", "ingest", "--recipe", "smoke"]
    given = dict(zip(words[4::2], words[5::2]))
    assert given["--data-uri"] == str(tmp_path / "raw") and given["--lines-out"] == str(tmp_path / "x")
    assert "--transfer-uri" not in given
    overrides = [value for name, value in zip(words[4::2], words[5::2]) if name == "--set"]
    assert config.load("smoke", overrides) == settings


@pytest.mark.parametrize(
    "address, stage, job",
    [("http://head:8265", "pretrain", True), ("http://head:8265", "register", False), ("head:6379", "pretrain", False)],
)
def test_the_address_of_a_job_server_makes_jobs_of_the_stages_that_use_a_cluster(monkeypatch, address, stage, job):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert jobs.wanted(stage) == job


def test_a_job_server_that_does_not_answer_is_said_with_the_mend(root, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    with pytest.raises(
        ValueError, match="RAY_ADDRESS=http://127.0.0.1:1 does not answer .*: start the cluster, or unset"
    ):
        pretrain(root, tmp_path / "out")
