import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from servers import seaweed

from maskocr_core import config, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.services import versions

OUTPUTS = ("lines", "validation", "selection", "codebook")


def call(folder, *command: str) -> str:
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def commits(folder) -> list[str]:
    return call(folder, "git", "log", "--format=%H").split()


def track(folder, raw, remote, overrides=()) -> None:
    versions.track(
        folder,
        data_uri=str(raw / "target"),
        transfer_uri=str(raw / "transfer"),
        recipe="smoke",
        overrides=list(overrides),
        remote=str(remote),
        code=stages.code_versions(),
        config=stages.config_version(config.load("smoke", overrides)),
    )


@pytest.fixture(scope="module")
def tracked(raw, tmp_path_factory):
    """A folder named with a space, with `repository` and its `remote`, the data stages run once by DVC from raw lines whose path has a space too."""
    root = tmp_path_factory.mktemp("tracked") / "my data"
    shutil.copytree(raw, root / "raw lines")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MASKOCR_WORK", raising=False)
        track(root / "repository", root / "raw lines", root / "remote")
        versions.reproduce(root / "repository")
    return root


@pytest.fixture
def repository(tracked, tmp_path, monkeypatch):
    """A copy that a test may change."""
    monkeypatch.delenv("MASKOCR_WORK")
    return shutil.copytree(tracked / "repository", tmp_path / "repository", symlinks=True)


def test_dvc_drives_the_data_stages_from_raw_lines_to_the_codebook(tracked):
    for name in OUTPUTS:
        assert Artifact(tracked / "repository" / name).manifest["kind"] == name


def test_the_data_version_is_the_one_that_the_stage_gives_by_itself(tracked, tmp_path):
    raw = tracked / "raw lines"
    stages.get("ingest")(
        config.load("smoke"),
        data_uri=str(raw / "target"),
        transfer_uri=str(raw / "transfer"),
        lines_out=tmp_path / "lines",
    )
    assert Artifact(tmp_path / "lines").version == Artifact(tracked / "repository/lines").version


def test_git_holds_what_names_the_data_and_none_of_the_data(tracked):
    held = call(tracked / "repository", "git", "ls-files").split("\n")
    assert {"dvc.yaml", "dvc.lock", "params.yaml", ".dvc/config"} <= set(held)
    assert not [name for name in held if name.startswith((*OUTPUTS, "work")) or name.endswith((".parquet", ".json"))]
    assert call(tracked / "repository", "git", "status", "--porcelain") == ""


def test_reproducing_what_has_not_changed_makes_no_commit(repository, tracked):
    before = commits(repository)
    track(repository, tracked / "raw lines", tracked / "remote")
    assert versions.reproduce(repository) == before[0]
    assert commits(repository) == before


def test_pushed_data_come_back_in_a_clone(tracked, tmp_path):
    call(tmp_path, "git", "clone", "--quiet", str(tracked / "repository"), "clone")
    assert not (tmp_path / "clone/lines").exists()
    versions.dvc(["pull", "--quiet"], tmp_path / "clone")
    for name in OUTPUTS:
        artifact = Artifact(tmp_path / "clone" / name)
        assert artifact.version == Artifact(tracked / "repository" / name).version
        for file in artifact.names():
            artifact.read_bytes(file)  # verifies the digest


def test_a_changed_override_makes_a_new_version_of_what_depends_on_it(repository, tracked):
    before = {name: Artifact(repository / name).version for name in OUTPUTS}
    first = commits(repository)[0]
    track(repository, tracked / "raw lines", tracked / "remote", ["codebook.clusters=12"])
    second = versions.reproduce(repository)
    assert second != first and commits(repository) == [second, first]
    assert Artifact(repository / "codebook").manifest["config"]["codebook"]["clusters"] == 12
    after = {name: Artifact(repository / name).version for name in OUTPUTS}
    assert {name for name in OUTPUTS if after[name] != before[name]} == {"codebook"}


def test_changed_raw_lines_and_changed_code_are_seen_by_dvc(repository, tracked, tmp_path):
    def stale() -> set[str]:
        return set(json.loads(call(repository, sys.executable, "-m", "dvc", "status", "--json")))

    params = json.loads((repository / "params.yaml").read_text())
    params["code"]["fit"] = "other code"
    (repository / "params.yaml").write_text(json.dumps(params))
    assert stale() == {"fit"}
    os.utime(shutil.copytree(tracked / "raw lines", tmp_path / "raw") / "target/train.parquet", (1, 1))
    track(repository, tmp_path / "raw", tracked / "remote")
    assert stale() == {"ingest"}


def test_a_relative_remote_counts_from_the_repository(raw, tmp_path):
    track(tmp_path / "data", raw, "../store")
    listed = call(tmp_path / "data", sys.executable, "-m", "dvc", "remote", "list").split()
    assert Path(listed[1]) == tmp_path / "store"


def test_a_stage_that_fails_under_dvc_fails_the_reproduction_and_commits_nothing(raw, tmp_path):
    shutil.copytree(raw / "target", tmp_path / "bad/target", ignore=shutil.ignore_patterns("test.parquet"))
    shutil.copytree(raw / "transfer", tmp_path / "bad/transfer")
    track(tmp_path / "repository", tmp_path / "bad", tmp_path / "remote")
    with pytest.raises(RuntimeError, match="dvc repro failed in .*repository"):
        versions.reproduce(tmp_path / "repository")
    with pytest.raises(subprocess.CalledProcessError):
        commits(tmp_path / "repository")


def test_without_a_checkout_of_maskocr_there_is_no_versioning_and_the_error_says_so(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "DEFINITION", tmp_path / "dvc.yaml")
    with pytest.raises(ValueError, match="needs a checkout of maskocr"):
        track(tmp_path / "repository", raw, tmp_path / "remote")


@pytest.mark.services
def test_data_pushed_to_s3_come_back_in_a_clone(repository, tracked, tmp_path, monkeypatch):
    with seaweed(tmp_path / "s3") as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        track(repository, tracked / "raw lines", "s3://lines-bucket/dvc")
        versions.reproduce(repository)
        assert len(server.keys("lines-bucket", "dvc/files/md5/")) > len(OUTPUTS)
        call(tmp_path, "git", "clone", "--quiet", str(repository), "clone")
        versions.dvc(["pull", "--quiet"], tmp_path / "clone")
    assert Artifact(tmp_path / "clone/lines").version == Artifact(tracked / "repository/lines").version
    assert server.secret_key not in (repository / ".dvc/config").read_text()
