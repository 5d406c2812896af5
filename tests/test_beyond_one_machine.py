"""The data stages on several machines: the same bytes as here, whatever dies."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nodes
import pytest
import rendered
from conftest import REPOSITORY, run_stage
from servers import seaweed

from maskocr_core import config, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.data import lines

TESTS = REPOSITORY / "tests"
PAGES = (".html", ".png", ".svg")  # with the time in them
SETTINGS = config.load("smoke", ["data.shard_lines=8"])


@pytest.fixture(autouse=True)
def two_at_a_time(monkeypatch):
    monkeypatch.setenv("MASKOCR_JOBS", "2")
    monkeypatch.setenv("PYTHONPATH", nodes.PYTHONPATH)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Fourteen documents of three lines, two of them without texts."""
    folder = tmp_path_factory.mktemp("raw") / "pairs"
    rendered.documents(folder, documents=12, lines=3, degrade=0.2)
    rendered.documents(folder / "more", documents=2, lines=3, labelled=False, degrade=0.2, seed=5)
    return folder


def ingest(data: Path, out: Path, monkeypatch, way: str) -> Artifact:
    monkeypatch.setenv("MASKOCR_MAP", way)
    monkeypatch.setenv("MASKOCR_WORK", str(out / "stages"))
    stages.get("ingest")(SETTINGS, data_uri=str(data), lines_out=out / "lines")
    return Artifact(out / "lines")


def data_road(raw: Path, smoke, out: Path, monkeypatch, way: str) -> dict[str, list[dict]]:
    """The files of all data stages' artifacts, but pages for people."""
    monkeypatch.setenv("MASKOCR_MAP", way)
    monkeypatch.setenv("MASKOCR_WORK", str(out / "stages"))
    for name in stages.DATA:
        run_stage(name, smoke, raw, out)
    return {
        name: [entry for entry in Artifact(out / name).manifest["files"] if not entry["name"].endswith(PAGES)]
        for name in ("lines", "validation", "selection", "codebook")
    }


@pytest.mark.cluster
def test_the_data_stages_give_the_same_bytes_inline_in_processes_and_on_ray(raw, smoke, tmp_path, monkeypatch):
    made = {way: data_road(raw, smoke, tmp_path / way, monkeypatch, way) for way in ("inline", "processes")}
    with nodes.one_node() as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        made["ray"] = data_road(raw, smoke, tmp_path / "ray", monkeypatch, "ray")
    assert made["inline"] == made["processes"]
    assert made["inline"] == made["ray"]
    assert all(made["inline"].values()) and len(made["inline"]["lines"]) >= 10


_UNDER_KFP = """
import sys
from kfp import local
from maskocr_components.ingest import ingest
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[2])
ingest(recipe="smoke", overrides=["data.shard_lines=8"], data_uri=sys.argv[1], transfer_uri="", protected_uris="")
"""


@pytest.mark.parametrize("program", ["maskocr", "python -m maskocr_core.cli", "kfp.local"])
def test_worker_processes_start_whatever_program_calls_for_them(pairs, tmp_path, monkeypatch, program):
    expected = ingest(pairs, tmp_path / "here", monkeypatch, "inline").version
    asked = [
        "ingest",
        "--recipe",
        "smoke",
        "--set",
        "data.shard_lines=8",
        "--data-uri",
        pairs,
        "--lines-out",
        "out/lines_out",
    ]
    command = {
        "maskocr": [Path(sys.executable).with_name("maskocr"), *asked],
        "python -m maskocr_core.cli": [sys.executable, "-m", "maskocr_core.cli", *asked],
        "kfp.local": [sys.executable, "-c", _UNDER_KFP, pairs, tmp_path / "out"],
    }[program]
    environment = os.environ | {"MASKOCR_MAP": "processes", "MASKOCR_WORK": str(tmp_path / "stages")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (out,) = (tmp_path / "out").rglob("lines_out")
    assert Artifact(out).version == expected


@pytest.mark.cluster
@pytest.mark.services
def test_workers_put_shards_into_the_store_and_share_no_folder_with_the_caller(pairs, tmp_path, monkeypatch):
    here = ingest(pairs, tmp_path / "here", monkeypatch, "processes")
    with seaweed(tmp_path / "s3") as s3, monkeypatch.context() as patch:
        for name, value in s3.env.items():
            patch.setenv(name, value)
        patch.setattr("boto3.DEFAULT_SESSION", None)
        patch.setenv("MASKOCR_STORE", f"s3://{s3.buckets[0]}/lines")
        # Ray first: what it puts into the store are the objects that the other way finds there.
        for way in ("ray", "processes"):
            stored = ingest(pairs, tmp_path / way, patch, way)
            assert stored.version == here.version
            assert not list((tmp_path / way).rglob("*.parquet"))
            uris = {entry["uri"] for entry in stored.manifest["files"] if entry["name"].endswith(".parquet")}
            assert {uri.removeprefix(f"s3://{s3.buckets[0]}/") for uri in uris} == set(s3.keys(s3.buckets[0], "lines/"))
            for split in lines.SPLITS:
                assert lines.index(stored, split).equals(lines.index(here, split))


@pytest.mark.cluster
@pytest.mark.namespace
def test_a_node_that_is_killed_costs_only_what_it_was_at_and_the_result_is_the_same(pairs, tmp_path, monkeypatch):
    inside = ["unshare", "--net", "--pid", "--fork", "--mount", "--kill-child"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        inside[1:1] = ["--user", "--map-root-user"]
        if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
            pytest.skip("this machine allows no namespaces")
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp") as short:  # socket paths may not exceed 107 bytes
        script = f"ip link set lo up; mount -t proc proc /proc; exec {sys.executable} {TESTS / 'two_nodes.py'} {pairs} {tmp_path / 'two'}"
        (tmp_path / "two").mkdir()
        done = subprocess.run(
            [*inside, "bash", "-c", script],
            env=os.environ | {"RAY_TMPDIR": short},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["files"] == ingest(pairs, tmp_path / "inline", monkeypatch, "inline").manifest["files"]
    began = said["begun"]
    assert {node for on in began.values() for node in on} > {said["second"]}  # both nodes were at work
    assert said["finished"] and all(len(began[name]) == 1 for name in said["finished"])
    again = {name for name, on in began.items() if len(on) > 1}
    assert again and all(said["second"] in began[name] for name in again) and len(again) <= 2
