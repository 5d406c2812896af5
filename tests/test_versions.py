"""Versions of the data by DVC, on a folder and on a real S3 server: push, pull, go back, add fresh data."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import rendered
from servers import DEAD_ENDPOINT, S3, seaweed

from maskocr_core import config, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.data import lines
from maskocr_core.services import versions
from maskocr_core.stages import keys

OUTPUTS = ("lines", "validation", "selection", "codebook")
BUCKET, REMOTE = "lines-bucket", "s3://lines-bucket/dvc"


def call(folder, *command: str) -> str:
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def commits(folder) -> list[str]:
    return call(folder, "git", "log", "--format=%H").split()


def demand_whole(folder: Path, name: str) -> Artifact:
    """The artifact of that name in a repository, every file's digest verified."""
    artifact = Artifact(folder / name)
    for file in artifact.names():
        artifact.read_bytes(file)
    return artifact


def objects(repository: Path) -> dict[str, str]:
    """File name in the repository → md5 of its object, of all four outputs as they are now in dvc.lock and the cache."""
    import yaml

    found = {}
    for stage in yaml.safe_load((repository / "dvc.lock").read_text())["stages"].values():
        for out in stage["outs"]:
            found[out["path"]] = out["md5"]
            listing = repository / ".dvc/cache/files/md5" / out["md5"][:2] / out["md5"][2:]
            found |= {f"{out['path']}/{row['relpath']}": row["md5"] for row in json.loads(listing.read_text())}
    return found


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


@dataclass(frozen=True)
class History:
    """A repository with its remote on S3 after two versions: the lines as tracked first, and fresh documents beside them."""

    repository: Path
    server: S3
    commits: tuple[str, str]
    lines: tuple[Artifact, Artifact]  # copies that no checkout touches
    objects: tuple[dict[str, str], dict[str, str]]  # file → md5, as DVC knows them
    remote: tuple[dict[str, str], dict[str, str]]  # key → when it was written, as the server lists them


@pytest.fixture(scope="module")
def history(tracked, tmp_path_factory) -> Iterator[History]:
    root = tmp_path_factory.mktemp("history")
    repository = shutil.copytree(tracked / "repository", root / "repository", symlinks=True)
    # Elsewhere and with other times: what a shard is called must not depend on either.
    grown = shutil.copytree(tracked / "raw lines", root / "grown", copy_function=shutil.copyfile)
    for name, split, documents, seed in (("unlabeled-fresh", "unlabeled", 3, 41), ("train-fresh", "train", 2, 42)):
        fresh = rendered.rows(documents=documents, lines=16, split=split, source="fresh", font="serif", seed=seed)
        rendered.parquet(grown / f"target/{name}.parquet", fresh)
    with seaweed(root / "s3") as server, pytest.MonkeyPatch.context() as patch:
        patch.delenv("MASKOCR_WORK", raising=False)
        _reach(server, patch)
        came = []
        for number, raw in enumerate((tracked / "raw lines", grown)):
            track(repository, raw, REMOTE)
            commit = versions.reproduce(repository)
            copy = shutil.copytree(repository / "lines", root / f"lines-{number}")
            came.append((commit, Artifact(copy), objects(repository), _listed(server)))
        yield History(repository, server, *zip(*came))


@pytest.fixture
def on_s3(history, monkeypatch) -> History:
    """The history, its server and keys in the environment and nowhere else."""
    _reach(history.server, monkeypatch)
    monkeypatch.delenv("MASKOCR_WORK", raising=False)
    return history


def _reach(server: S3, patch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    for name, value in server.env.items():
        patch.setenv(name, value)


def _listed(server: S3) -> dict[str, str]:
    pages = server.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="dvc/")
    return {item["Key"]: item["LastModified"].isoformat() for page in pages for item in page.get("Contents", ())}


def _key(md5: str) -> str:
    return f"dvc/files/md5/{md5[:2]}/{md5[2:]}"


@pytest.mark.services
def test_what_was_pushed_to_s3_comes_back_in_a_clone_file_by_file(on_s3, tmp_path):
    call(tmp_path, "git", "clone", "--quiet", str(on_s3.repository), "clone")
    versions.dvc(["pull", "--quiet"], tmp_path / "clone")
    for name in OUTPUTS:
        demand_whole(tmp_path / "clone", name)
    assert Artifact(tmp_path / "clone/lines").version == on_s3.lines[1].version


@pytest.mark.services
def test_no_key_of_the_server_is_in_any_file_or_commit_of_the_repository(on_s3):
    keys = [on_s3.server.secret_key.encode(), on_s3.server.access_key.encode()]
    for path in (path for path in on_s3.repository.rglob("*") if path.is_file()):
        assert not any(key in path.read_bytes() for key in keys), path
    told = call(on_s3.repository, "git", "log", "--all", "--patch")
    assert REMOTE in told and not any(key.decode() in told for key in keys)


@pytest.mark.services
def test_a_version_is_a_few_objects_however_many_lines_it_has(on_s3):
    assert {_key(md5) for md5 in on_s3.objects[0].values()} == set(on_s3.remote[0])
    held = [name for name in on_s3.objects[0] if name.startswith("lines/")]
    files = {f"lines/{name}" for name in (*on_s3.lines[0].names(), "manifest.json", "lineage.json")}
    assert set(held) == files
    count = sum(lines.count(on_s3.lines[0], split) for split in lines.SPLITS)
    assert len(files) < count / 10


@pytest.mark.services
def test_fresh_documents_make_a_new_version_that_shares_the_old_shards_and_uploads_only_what_is_new(on_s3):
    before, after = on_s3.lines
    assert before.version != after.version
    old = {name for split in lines.SPLITS for name in lines.shards(before, split)}
    new = {name for split in lines.SPLITS for name in lines.shards(after, split)}
    assert old < new
    assert {name: on_s3.objects[1][f"lines/{name}"] for name in old} == {
        name: on_s3.objects[0][f"lines/{name}"] for name in old
    }
    for name in old:
        assert before.read_bytes(name) == after.read_bytes(name)
    uploaded = set(on_s3.remote[1]) - set(on_s3.remote[0])
    assert uploaded == {_key(md5) for md5 in set(on_s3.objects[1].values()) - set(on_s3.objects[0].values())}
    assert {_key(on_s3.objects[1][f"lines/{name}"]) for name in new - old} <= uploaded
    # What was there is neither gone nor written again.
    assert {key: on_s3.remote[1].get(key) for key in on_s3.remote[0]} == on_s3.remote[0]


@pytest.mark.services
def test_the_old_commit_brings_the_old_version_back_and_the_new_one_the_new(on_s3, tmp_path):
    repository = shutil.copytree(on_s3.repository, tmp_path / "repository", symlinks=True)
    for number in (0, 1, 0):
        call(repository, "git", "checkout", "--quiet", on_s3.commits[number])
        versions.dvc(["checkout", "--quiet"], repository)
        assert demand_whole(repository, "lines").version == on_s3.lines[number].version
        assert call(repository, "git", "status", "--porcelain") == ""
        assert json.loads(call(repository, sys.executable, "-m", "dvc", "status", "--json")) == {}


@pytest.mark.services
def test_a_clone_without_a_cache_pulls_the_old_version_too(on_s3, tmp_path):
    call(tmp_path, "git", "clone", "--quiet", str(on_s3.repository), "clone")
    call(tmp_path / "clone", "git", "checkout", "--quiet", on_s3.commits[0])
    versions.dvc(["pull", "--quiet", "ingest"], tmp_path / "clone")
    assert demand_whole(tmp_path / "clone", "lines").version == on_s3.lines[0].version


@pytest.mark.services
def test_an_object_that_was_changed_in_the_remote_is_not_checked_out(on_s3, tmp_path):
    shard = lines.shards(on_s3.lines[1], "unlabeled")[0]
    uri = f"s3://{BUCKET}/{_key(on_s3.objects[1][f'lines/{shard}'])}"
    content = (on_s3.lines[1].folder / shard).read_bytes()
    on_s3.server.put(uri, content[:-1] + bytes([content[-1] ^ 1]))
    call(tmp_path, "git", "clone", "--quiet", str(on_s3.repository), "clone")
    try:
        with pytest.raises(RuntimeError, match="dvc pull ingest failed"):
            versions.dvc(["pull", "ingest"], tmp_path / "clone")
        assert not (tmp_path / "clone/lines").exists()
    finally:
        on_s3.server.put(uri, content)


@pytest.mark.services
def test_a_version_of_the_data_is_found_by_the_digest_that_runs_and_models_carry(on_s3):
    for commit, artifact in zip(on_s3.commits, on_s3.lines):
        found = call(on_s3.repository, "git", "log", "--format=%H", f"--grep=lines {artifact.version}").split()
        assert found[0] == commit


@pytest.mark.services
def test_going_back_and_forth_leaves_finished_work_as_it_was(on_s3, tmp_path):
    """Finished work is linked to the outputs: a checkout must replace the files, not write into them."""
    work = on_s3.repository / "work/stages/ingest"
    for commit in on_s3.commits:
        call(on_s3.repository, "git", "checkout", "--quiet", commit)
        versions.dvc(["checkout", "--quiet"], on_s3.repository)
    finished = [demand_whole(path.parent, path.name) for path in work.glob("*/lines_out")]
    assert {artifact.version for artifact in finished} == {artifact.version for artifact in on_s3.lines}


@pytest.mark.services
def test_a_remote_that_is_down_is_said_when_pushing_and_nothing_is_committed(on_s3, tmp_path, capfd):
    repository = shutil.copytree(on_s3.repository, tmp_path / "repository", symlinks=True)
    before = commits(repository)
    versions.dvc(["remote", "modify", "store", "endpointurl", DEAD_ENDPOINT], repository)
    with pytest.raises(RuntimeError, match="dvc push failed in .*repository; its message stands above"):
        versions.reproduce(repository)
    assert f'Could not connect to the endpoint URL: "{DEAD_ENDPOINT}/{BUCKET}/' in capfd.readouterr().err
    assert commits(repository) == before


def test_a_remote_that_is_down_is_refused_before_any_work(raw, tmp_path, monkeypatch):
    _reach(S3(DEAD_ENDPOINT, "any", "any"), monkeypatch)
    with pytest.raises(ValueError, match="bucket 'lines-bucket' does not answer .*check AWS_ENDPOINT_URL"):
        track(tmp_path / "repository", raw, REMOTE)
    assert not (tmp_path / "repository").exists()


def test_lines_are_read_and_stages_run_while_dvc_holds_its_lock(repository, tmp_path, capfd):
    import zc.lockfile  # what dvc.lock.Lock is made of

    held = zc.lockfile.LockFile(str(repository / ".dvc/tmp/lock"))
    try:
        with pytest.raises(RuntimeError):
            versions.dvc(["checkout"], repository)
        assert "Unable to acquire lock" in capfd.readouterr().err  # it is held indeed
        artifact = demand_whole(repository, "lines")
        assert sum(batch.num_rows for batch in lines.images(artifact, "unlabeled")) > 0
        stages.get("quantize")(
            config.load("smoke", ["codebook.seed=1"]),
            lines=repository / "lines",
            selection=repository / "selection",
            codebook_out=tmp_path / "codebook",
        )
    finally:
        held.close()
    assert demand_whole(tmp_path, "codebook").manifest["kind"] == "codebook"


def test_only_services_call_dvc_and_no_stage_can_reach_those_that_do():
    calling = set()
    for path in Path(stages.__file__).parents[1].rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        assert not [node for node in nodes if isinstance(node, ast.Import) and node.names[0].name.startswith("dvc")]
        if any(isinstance(node, ast.Constant) and node.value == "dvc" for node in nodes):
            calling.add(path)
    assert Path(versions.__file__) in calling and {path.parent.name for path in calling} == {"services"}
    for name in stages.NAMES:
        assert not calling & set(keys.sources(name)), name


def test_a_stage_refuses_lines_of_another_version_than_its_run_is_about(tracked, tmp_path):
    validate = stages.get("validate")
    with pytest.raises(ValueError) as refusal:
        validate(
            config.load("smoke"),
            data_version="0123456789abcdef",
            lines=tracked / "repository/lines",
            validation_out=tmp_path / "validation",
        )
    version = Artifact(tracked / "repository/lines").version
    assert str(refusal.value).startswith(
        f"{tracked / 'repository/lines'} holds data version {version[:12]}, this run is about 0123456789ab: "
    )
    assert not (tmp_path / "validation").exists()


def test_the_data_version_that_a_run_is_about_makes_no_other_work(tracked, tmp_path, capsys):
    folder = tracked / "repository/lines"
    for number, said in enumerate(("", stages.data_version(folder), stages.data_version(folder))):
        stages.get("quantize")(
            config.load("smoke"),
            data_version=said,
            lines=folder,
            selection=tracked / "repository/selection",
            codebook_out=tmp_path / f"codebook-{number}",
        )
    assert capsys.readouterr().err.count("quantize: nothing it reads has changed, reused") == 2


def test_tracking_again_from_another_folder_with_the_same_lines_changes_nothing(
    repository, tracked, tmp_path, monkeypatch
):
    def told() -> dict[str, str]:
        return {
            name: (repository / name).read_text() for name in ("params.yaml", "dvc.yaml", ".dvc/config", ".gitignore")
        }

    before = told()
    for working in (tracked, tracked / "remote", tmp_path):
        monkeypatch.chdir(working)
        command = [sys.executable, "-m", "maskocr_core.cli", "track", os.path.relpath(repository), "--recipe", "smoke"]
        for option, path in (("--data", "target"), ("--transfer", "transfer")):
            command += [option, os.path.relpath(tracked / "raw lines" / path)]
        subprocess.run([*command, "--remote", str(tracked / "remote")], check=True, cwd=working)
        assert told() == before
