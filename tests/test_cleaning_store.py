"""What may go of a store, on a real S3 server, and what never does."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import run_stage
from servers import DEAD_ENDPOINT, lead

from maskocr_core import artifacts, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.cleaning import store as cleaning
from maskocr_core.services import storage, versions

DAY = 24 * 3600.0
KEY = "0123456789abcdef01234567"

pytestmark = pytest.mark.services


@pytest.fixture
def store(at_s3, monkeypatch, request) -> str:
    """MASKOCR_STORE of one test, in a bucket where others keep things too."""
    uri = f"s3://other-bucket/{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"
    monkeypatch.setenv("MASKOCR_STORE", uri)
    return uri


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder with a manifest that names nothing of a store."""
    return artifact(tmp_path / "elsewhere", b"", ".json").folder


def artifact(folder: Path, content: bytes, suffix: str = ".parquet") -> Artifact:
    """A finished artifact of one file, which goes to the store if it is a large one's kind."""
    folder.mkdir(parents=True)
    if suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"content": [content]}), folder / "part.parquet")
    else:
        (folder / f"part{suffix}").write_bytes(content)
    return artifacts.finish(folder, kind="lines", config={}, metrics={})


def uri_of(made: Artifact) -> str:
    (entry,) = made.manifest["files"]
    return entry["uri"]


def orphan(folder: Path, content: bytes) -> str:
    """URI of an object in the store whose artifact is gone."""
    uri = uri_of(artifact(folder, content))
    shutil.rmtree(folder)
    return uri


def checkpoints(store: str, stage: str = "pretrain", key: str = KEY) -> str:
    home = f"{store}/unfinished/{stage}/{key}"
    storage.put(f"{home}/scratch/checkpoints/index.json", b"{}")
    storage.put(f"{home}/scratch/checkpoints/step-00000010-1.safetensors", b"weights")
    return home


def look(store, *manifests, folders=(), after=31.0, **rule):
    """What is found so many days from now."""
    return cleaning.look(store, folders, map(str, manifests), now=time.time() + after * DAY, **rule)


def going(*arguments, **rule) -> dict[str, str]:
    return {entry.uri: entry.why for entry in look(*arguments, **rule) if not entry.kept}


RUNS = "/unfinished/runs/"


def going_but_runs(*arguments) -> dict[str, str]:
    return {uri: why for uri, why in going(*arguments).items() if RUNS not in uri}


def reasons(*arguments, **rule) -> set[str]:
    return {entry.why for entry in look(*arguments, **rule) if entry.kept}


def test_an_object_that_no_manifest_names_goes_when_it_is_old_and_another_stays(store, tmp_path):
    named, lost = artifact(tmp_path / "a" / "named", b"one"), orphan(tmp_path / "orphan", b"two")
    (left,) = [entry for entry in look(store, tmp_path / "a") if not entry.kept]
    assert (left.uri, left.what) == (lost, "shard")
    assert left.why == "named by no manifest, run or model, not written for 30 days"
    assert reasons(store, tmp_path / "a") == {"named by a manifest"}
    (file,) = storage.files(lost)
    assert cleaning.delete([left]) == file.size == left.frees
    assert not storage.exists(lost) and named.read_bytes("part.parquet")
    assert going(store, tmp_path / "a") == {}


def test_what_is_younger_than_the_age_stays_and_never_less_than_a_day(store, place):
    orphan(place.parent / "orphan", b"three")
    checkpoints(store)
    assert going(store, place, after=29) == {}
    assert going(store, place, after=0.9, days=0) == {}
    assert reasons(store, place, after=0.9, days=0) == {"written within 1 days"}
    assert len(going(store, place, after=1.1, days=0)) == 2


def test_without_a_place_for_manifests_no_shard_goes(store, tmp_path):
    orphan(tmp_path / "orphan", b"four")
    assert going(store) == {}
    assert reasons(store) == {"no manifest here names it: say with --manifests where all others lie"}


def test_where_models_are_registered_must_be_known(store, place, monkeypatch):
    orphan(place.parent / "orphan", b"twelve")
    assert going(store, place)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert going(store, place) == {}
    (why,) = reasons(store, place)
    assert why.endswith("but there is no MLflow here: say with MLFLOW_TRACKING_URI where models are registered")


@pytest.mark.parametrize("wrong", ["nowhere", "empty", "s3://lines-bucket/nothing"])
def test_a_place_without_manifests_is_refused(store, tmp_path, wrong):
    orphan(tmp_path / "orphan", b"five")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="nowhere: no such|no manifest.json lies below it; give a folder"):
        look(store, wrong if "://" in wrong else tmp_path / wrong)


def test_a_manifest_in_a_bucket_counts_as_one_in_a_folder(store, at_s3, tmp_path):
    made = artifact(tmp_path / "made", b"six")
    at_s3.put_folder(made.folder, "s3://lines-bucket/v2/artifacts/run/lines_out")
    shutil.rmtree(made.folder)
    assert going(store, "s3://lines-bucket/v2/artifacts") == {}
    assert reasons(store, "s3://lines-bucket/v2/artifacts") == {"named by a manifest"}


def test_what_an_unfinished_stage_has_stored_already_stays(store, place):
    part = artifact(place.parent / "part", b"seven")
    unfinished = place.parent / "stages" / "ingest" / KEY / "lines_out.unfinished"
    unfinished.mkdir(parents=True)
    (entry,) = part.manifest["files"]
    (unfinished / f"part.parquet{artifacts.ELSEWHERE}").write_text(json.dumps(entry))
    shutil.rmtree(part.folder)
    assert going(store, place, folders=[place.parent / "stages"]) == {}
    shutil.rmtree(unfinished)
    assert set(going(store, place, folders=[place.parent / "stages"])) == {entry["uri"]}


def test_an_old_version_of_the_data_names_its_shards(store, place, tmp_path):
    repository = tmp_path / "versions"
    repository.mkdir()
    for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"]):
        subprocess.run(command, cwd=repository, check=True)
    made = artifact(repository / "lines", b"eight")
    versions.dvc(["add", "lines"], repository)
    commit = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "lines"]
    subprocess.run(["git", "add", "."], cwd=repository, check=True)
    subprocess.run(commit, cwd=repository, check=True)
    shutil.rmtree(made.folder)
    (repository / "lines.dvc").unlink()
    artifact(repository / "others", b"", ".json")
    assert going(store, repository) == {}
    shutil.rmtree(repository / ".dvc" / "cache")
    assert going(store, repository) == {}
    (why,) = reasons(store, repository)
    assert why.startswith("no manifest that was read names it, but version ") and "cannot be read" in why


def test_checkpoints_go_when_nobody_wrote_any_for_so_long(store):
    home = checkpoints(store)
    assert going(store, after=29) == {}
    assert going(store) == {home: "checkpoints of what was not finished, unused for 30 days"}
    assert cleaning.delete(look(store)) == len(b"{}") + len(b"weights")
    assert not storage.holds(home) and going(store) == {}


def test_checkpoints_of_a_finished_pretraining_are_told_from_those_of_an_unfinished_one(store):
    home = checkpoints(store)
    place = artifacts.work_folder() / "pretrain" / KEY
    artifact(place / "encoder_out", b"{}", ".json")
    (place / ".lock").touch()
    (entry,) = look(store)
    assert (entry.what, entry.why) == ("pretrain, superseded", "checkpoints of what is finished, unused for 30 days")
    assert cleaning.delete([entry]) and not storage.holds(home)


def test_runs_of_fine_tuning_go_like_checkpoints_and_are_told_from_those_that_did_not_end(store):
    home = checkpoints(store, "runs")
    (entry,) = look(store)
    assert (entry.what, entry.why) == ("run of fine-tuning, in part", "it did not end, unused for 30 days")
    storage.put(f"{home}/result.json", b"{}")
    assert look(store, after=29)[0].kept
    (entry,) = look(store)
    assert entry.what == "run of fine-tuning" and entry.why.startswith("its best recognizers were copied")
    assert cleaning.delete([entry]) and not storage.holds(home)


def test_checkpoints_of_work_that_a_live_process_holds_stay(store):
    home = checkpoints(store)
    lock = artifacts.work_folder() / "pretrain" / KEY / ".lock"
    lock.parent.mkdir(parents=True)
    said, found = [], look(store)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert reasons(store) == {"at work now"}
        assert cleaning.delete(found, said.append) == 0
    assert said == [f"{home}: in use by now, kept"]


def test_what_was_written_since_the_look_is_left_and_said(store, place):
    lost = orphan(place.parent / "made", b"nine")
    home, found, said = checkpoints(store), look(store, place), []
    time.sleep(1.1)  # the server's clock may count seconds
    storage.put(f"{home}/scratch/checkpoints/step-00000020-1.safetensors", b"more")
    storage.put(lost, storage.content(lost))
    assert cleaning.delete(found, said.append) == 0
    assert sorted(said) == sorted(f"{uri}: in use by now, kept" for uri in (home, lost))


def test_a_stage_that_makes_a_shard_that_is_there_already_renews_it(store, place, monkeypatch):
    uri = uri_of(artifact(place.parent / "made", b"ten"))
    (before,) = storage.files(uri)
    found = look(store, place)
    time.sleep(1.1)
    artifact(place.parent / "again", b"ten")
    assert storage.files(uri) == [before], "a fresh one is as it was"
    monkeypatch.setattr(storage, "_FRESH", 0.0)
    artifact(place.parent / "later", b"ten")
    (after,) = storage.files(uri)
    assert after.modified > before.modified and after.stamp == before.stamp
    assert cleaning.delete(found, lambda _: None) == 0


def test_nothing_outside_of_what_maskocr_stores_is_looked_at(store, place, at_s3):
    digest = hashlib.sha256(b"eleven").hexdigest()
    others = ["ledger/00000001.json", "tombstones.json", "forgotten/a.json", "claims/00000001.json", "clock"]
    others += [f"{digest}.parquet", f"zz/{digest}.parquet", f"{digest[:2]}/{digest}.png", f"unfinished/{digest}"]
    kept = [f"{store}/{name}" for name in others]
    kept += [f"{store}-other/{digest[:2]}/{digest}.parquet", f"s3://other-bucket/{digest[:2]}/{digest}.parquet"]
    for uri in kept:
        at_s3.put(uri, b"eleven")
    assert look(store, place) == []
    at_s3.put(f"{store}/{digest[:2]}/{digest}.parquet", b"eleven")
    assert cleaning.delete(look(store, place)) == len(b"eleven")
    assert all(storage.exists(uri) for uri in kept)


def test_more_objects_than_one_answer_holds_are_all_found(store, place, at_s3):
    client, (bucket, _, prefix) = at_s3.client(), store.removeprefix("s3://").partition("/")
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(1003)]
    for digest in digests:
        client.put_object(Bucket=bucket, Key=f"{prefix}/{digest[:2]}/{digest}.parquet", Body=b"x")
    found = look(store, place)
    assert len(found) == 1003 and sum(entry.frees for entry in found) == 1003
    (kept,) = look(store)
    assert (kept.what, kept.frees, kept.kept) == ("1,003 shards and weights", 1003, True)


@pytest.fixture(scope="module")
def registered(s3, raw, smoke, tmp_path_factory) -> Path:
    """A road whose large files lie in a store, up to a registered model."""
    root = tmp_path_factory.mktemp("registered")
    with pytest.MonkeyPatch.context() as patch:
        lead(patch, s3.env)
        patch.chdir(root)
        patch.setenv("MASKOCR_WORK", str(root / "stages"))
        patch.setenv("MASKOCR_STORE", "s3://other-bucket/registered")
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
        patch.setenv("MASKOCR_RUN", "registered")
        for name in stages.NAMES:
            run_stage(name, smoke, raw, root / "road")
    return root


def test_what_a_registered_model_was_made_of_stays(registered, at_s3, place, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{registered / 'mlflow.db'}")
    uri = "s3://other-bucket/registered"
    assert reasons(uri, registered / "road") == {"named by a manifest"}
    assert going_but_runs(uri, registered / "road") == {}
    # Its runs of fine-tuning were copied into the recognisers and are of no use but to a later sweep.
    assert {why for run, why in going(uri, registered / "road").items() if RUNS in run}
    # Of its manifests none but the one that MLflow keeps is to be seen.
    assert going_but_runs(uri, place) == {}
    why = {reason for reason in reasons(uri, place) if reason != "named by a manifest"}
    (lineage,) = why
    version = Artifact(registered / "road" / "lines").version
    assert f"but model maskocr/1 was made of lines {version[:12]}, of which no manifest was read" in lineage


def test_an_encoder_of_a_registered_model_must_be_accounted_for_too(registered, at_s3, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{registered / 'mlflow.db'}")
    shutil.copytree(registered / "road", tmp_path / "road")
    shutil.rmtree(tmp_path / "road" / "encoder")
    uri = "s3://other-bucket/registered"
    assert going_but_runs(uri, tmp_path / "road") == {}
    assert any("model maskocr/1 was made of encoder" in reason for reason in reasons(uri, tmp_path / "road"))


def test_a_version_of_a_model_that_was_deleted_holds_nothing_any_more(registered, at_s3, place, tmp_path, monkeypatch):
    import mlflow

    shutil.copy(registered / "mlflow.db", tmp_path / "mlflow.db")
    mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").delete_model_version("maskocr", "1")
    found = going("s3://other-bucket/registered", place)
    encoder, codebook = (Artifact(registered / "road" / name) for name in ("encoder", "codebook"))
    uris = {entry.get("uri") for made in (encoder, codebook) for entry in made.manifest["files"]} - {None}
    assert {uri for uri in uris if uri in found} == {
        entry["uri"] for entry in encoder.manifest["files"] if "uri" in entry
    }, "MLflow keeps the manifest of the codebook"


WRONG = {
    "a bucket that is not there": ({}, "s3://no-such-bucket/x"),
    "a wrong secret": ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "s3://lines-bucket/x"),
    "an endpoint where nobody listens": ({"AWS_ENDPOINT_URL": DEAD_ENDPOINT}, "s3://lines-bucket/x"),
}


def gc(*arguments, **environment):
    command = [sys.executable, "-m", "maskocr_core.cli", "gc", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "300"} | environment)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_store_that_does_not_answer_is_one_sentence(at_s3, wrong):
    changes, uri = WRONG[wrong]
    done = gc(MASKOCR_STORE=uri, **changes)
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert uri in line and "check the bucket's name" in line


def aged(store: Path, days: float) -> None:
    for path in store.rglob("*"):
        os.utime(path, (time.time() - days * DAY,) * 2)


def test_the_command_lists_what_a_store_costs_and_removes_it_only_when_asked(tmp_path, place):
    digest = hashlib.sha256(b"orphan").hexdigest()
    orphan = tmp_path / "store" / digest[:2] / f"{digest}.safetensors"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(bytes(2_000_000))
    checkpoints(str(tmp_path / "store"))
    aged(tmp_path / "store", 40)
    fresh = checkpoints(str(tmp_path / "store"), key=KEY[::-1])
    environment = {"MASKOCR_STORE": str(tmp_path / "store")}
    shown = gc("--manifests", place, **environment).stdout
    assert "nothing was deleted; --delete gives back 2.0 MB" in shown and str(orphan) in shown
    assert "named by no manifest, run or model, not written for 30 days" in shown and orphan.exists()
    assert "2.0 MB given back" in gc("--delete", "--manifests", place, **environment).stdout
    assert [path for path in (tmp_path / "store").rglob("*.safetensors")] == list(Path(fresh).rglob("*.safetensors"))
    assert gc("--delete", "--manifests", place, **environment).stdout.endswith("0 bytes given back\n")
    assert gc("--manifests", place, **environment).stdout.endswith("nothing to delete\n")


def test_without_a_store_a_place_for_manifests_is_refused(place):
    done = gc("--manifests", place)
    assert done.returncode == 2 and "--manifests is about the store: set MASKOCR_STORE" in done.stderr
