"""One document, everywhere it goes: through all stages, versions of the data, S3 and MLflow. Then it is forgotten."""

import io
import json
import os
import subprocess
import sys
import urllib.request
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import rendered
import seeking
import yaml
from conftest import run_stage
from PIL import Image
from servers import seaweed

from maskocr_core import config, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.data import lines
from maskocr_core.services import versions

pytestmark = pytest.mark.services
COPYBOOK = "rendered/test/copybook"
ROOT = ("--pipeline-root", "s3://other-bucket/pipelines")


def raw_lines(folder: Path) -> Path:
    """Lines of which every test document has a line that a copybook has too, and an unlabelled one too faint to be read."""
    pack = rendered.parquet
    pack(folder / "target/train.parquet", rendered.rows(documents=12, lines=12, split="train", font="serif", seed=1))
    pack(folder / "target/val.parquet", rendered.rows(documents=3, lines=6, split="val", font="serif", seed=2))
    test = rendered.rows(documents=4, lines=6, split="test", font="serif", seed=3)
    copies = [row | {"doc": COPYBOOK, "page": f"{COPYBOOK}/1"} for row in test if row["id"].endswith("/0")]
    pack(folder / "target/test.parquet", test + copies)
    blank = [
        row | {"image": faint(row["image"]), "text": None, "order": -1, "split": "unlabeled"}
        for row in test
        if row["id"].endswith("/1")
    ]
    pool = rendered.rows(documents=6, lines=16, split="unlabeled", font="serif", seed=4)
    pack(folder / "target/unlabeled.parquet", pool + blank)
    pack(folder / "transfer/train.parquet", rendered.rows(documents=4, lines=10, split="train", source="other", seed=6))
    pack(folder / "transfer/val.parquet", rendered.rows(documents=2, lines=8, split="val", source="other", seed=7))
    return folder


def faint(image: bytes) -> bytes:
    """The line as an exhausted ribbon leaves it: a person still sees it, `validate` quarantines it."""
    with Image.open(io.BytesIO(image)) as opened:
        return rendered.png((245 + np.asarray(opened) // 26).astype(np.uint8))


def version_the_data(repository: Path, raw: Path) -> str:
    versions.track(
        repository, data_uri=str(raw / "target"), transfer_uri=str(raw / "transfer"), recipe="smoke", overrides=[],
        remote="s3://other-bucket/dvc", code=stages.code_versions(), config=stages.config_version(config.load("smoke")),
    )  # fmt: skip
    return versions.reproduce(repository)


def settle(settings: dict[str, str], root: Path, patch: pytest.MonkeyPatch) -> None:
    patch.chdir(root)
    for name, value in settings.items():
        patch.setenv(name, value)


@pytest.fixture(autouse=True)
def at_home(world, own_place, monkeypatch):
    """Every test here is in the same place."""
    settle(world["settings"], world["root"], monkeypatch)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """All stages, their outputs published, the data in DVC with a remote in S3, lines in a store in S3, a model in MLflow."""
    root = tmp_path_factory.mktemp("world")
    with seaweed(root / "s3") as server, pytest.MonkeyPatch.context() as patch:
        settings = server.env | {
            "MASKOCR_WORK": str(root / "work/stages"),
            "MASKOCR_STORE": "s3://lines-bucket/store",
            "MASKOCR_TOMBSTONES": "s3://lines-bucket/tombstones.json",
            "MLFLOW_TRACKING_URI": f"sqlite:///{root / 'work/mlflow.db'}",
            "MASKOCR_MAP": "inline",
        }
        settle(settings | {"MASKOCR_RUN": "world"}, root, patch)
        raw, published = raw_lines(root / "raw"), root / "work/pipelines/run"
        smoke = config.load("smoke", ["pretrain.workers=0", "sweep.jobs=1", 'sweep.starts=["scratch", "pretrained"]'])
        patch.delenv("MASKOCR_STORE")  # DVC keeps the shards themselves
        for name in stages.NAMES:
            run_stage(name, smoke, raw, published)
        commit = version_the_data(root / "work/data", raw)  # its stages are made already
        settle(settings | {"MASKOCR_WORK": str(root / "work/stored/stages")}, root, patch)
        run_stage("ingest", smoke, raw, root / "work/stored")
        for path in sorted(path for path in published.rglob("*") if path.is_file()):
            key = f"pipelines/run/{path.relative_to(published).as_posix()}"
            server.client().put_object(Bucket="other-bucket", Key=key, Body=path.read_bytes())
        yield {
            "root": root,
            "server": server,
            "raw": raw,
            "published": published,
            "commit": commit,
            "settings": settings,
        }


def sought(world, document: str) -> seeking.Sought:
    """Everything that the raw files say of a document and of nobody else."""
    import pyarrow.parquet as pq

    rows = [row for path in (world["raw"] / "target").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    shared = {row["image"] for row in rows if row["doc"] != document}
    own = [row for row in rows if row["doc"] == document and row["image"] not in shared]
    ids = {lines.line_id(row["image"]) for row in own} | {document} | {row["page"] for row in own}
    return seeking.Sought(sorted(ids), [row["text"] for row in own if row["text"]], [row["image"] for row in own])


def everywhere(world) -> dict[str, list[tuple[str, bytes]]]:
    root, client = world["root"], world["server"].client()
    return {
        "work folder": list(seeking.in_folder(root / "work/stages")),
        "pipeline folder": list(seeking.in_folder(root / "work/pipelines")),
        "workspace": list(seeking.in_folder(root / "work/data", without=(".dvc/cache",))),
        "cache": list(seeking.in_folder(root / "work/data/.dvc/cache")),
        "remote": list(seeking.in_bucket(client, "other-bucket", "dvc/")),
        "store": list(seeking.in_bucket(client, "lines-bucket")),
        "pipeline root": list(seeking.in_bucket(client, "other-bucket", "pipelines/")),
        "MLflow": [
            *seeking.in_folder(root / "work/mlartifacts"),
            ("mlflow.db", (root / "work/mlflow.db").read_bytes()),
        ],
    }


def search(world, wanted: seeking.Sought) -> dict[str, dict[str, set[str]]]:
    """By place, the files that hold anything, and what."""
    found: dict[str, dict[str, set[str]]] = defaultdict(dict)
    for place, files in everywhere(world).items():
        for name, content in files:
            if kinds := wanted.found_in(content):
                found[place][name] = kinds
    return dict(found)


def summed_up(found: dict[str, dict[str, set[str]]]) -> str:
    """The outcome of a search for people: docs/erasure.md shows it."""
    rows = [
        f"{place}: {len(files)} files, by {', '.join(sorted(set().union(*files.values())))}"
        for place, files in found.items()
    ]
    return "\n".join(rows) or "nothing is found by id, text, bytes or picture"


def forget(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "maskocr_core.cli", "forget", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)


def killed_while(sentence: str, *arguments: str) -> None:
    """Start to forget, and kill that with SIGKILL as soon as it says `sentence`."""
    command = [sys.executable, "-m", "maskocr_core.cli", "forget", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        for line in process.stdout:
            if line.startswith(sentence):
                process.kill()
                return
    raise AssertionError(f"it never said {sentence!r}")


def rows_of(artifact: Artifact, split: str) -> dict[tuple, bytes]:
    table = [row for batch in lines.images(artifact, split) for row in batch.to_pylist()]
    return {(row["line_id"], row["document_id"], row["text"]): row["image"] for row in table}


def garbage_collected(world, needle: bytes) -> bool:
    """Vacuum the S3 server's volumes; whether bytes of an erased object were in them before, and are not now."""
    data = world["root"] / "s3/data"

    def there() -> bool:
        return any(needle in path.read_bytes() for path in data.rglob("*.dat"))

    before = there()
    master = int(world["server"].endpoint.rpartition(":")[2]) + 2
    urllib.request.urlopen(f"http://127.0.0.1:{master}/vol/vacuum?garbageThreshold=0.00001", timeout=60).read()
    return before and not there()


def shown_document(published: Path) -> str:
    """The owner of a line in the report that the copybook does not have too."""
    shared = set(lines.read_table(Artifact(published / "lines"), "duplicates.parquet")["line_id"].to_pylist())
    examples = json.loads((published / "evaluation/summary.json").read_text())["examples"]
    line = next(example["line_id"] for example in examples if example["line_id"] not in shared)
    table = lines.index(Artifact(published / "lines"), "test")
    return dict(zip(table["line_id"].to_pylist(), table["document_id"].to_pylist()))[line]


def test_a_document_is_found_everywhere_before_and_nowhere_after_it_was_forgotten(world, tmp_path):
    root, published = world["root"], world["published"]
    document = shown_document(published)
    wanted = sought(world, document)
    before = search(world, wanted)
    for place in ("work folder", "pipeline folder", "workspace", "cache", "remote", "store", "pipeline root", "MLflow"):
        kinds = set().union(*before[place].values())
        assert kinds >= {"id", "text", "picture"}, (place, kinds)
        assert ("bytes" in kinds) == (place != "MLflow"), place  # which has no shards
    others = {
        split: rows_of(Artifact(published / "lines"), split)
        for split in ("train", "test", "unlabeled", "transfer-train")
    }
    kept_objects = {key: content for key, content in everywhere(world)["remote"] if key not in before["remote"]}
    erased = next(
        content for key, content in everywhere(world)["remote"] if key in before["remote"] and content[:4] == b"PAR1"
    )

    arguments = ("--document", document, "--reason", "asked by letter", "--work", "work", *ROOT)
    dry = forget(*arguments, "--dry-run")
    assert dry.returncode == 0 and "nothing was changed (--dry-run)" in dry.stdout, dry.stderr
    assert search(world, wanted).keys() == before.keys()
    killed_while("re-packed:", *arguments)
    done = forget(*arguments)
    after = search(world, wanted)
    (root / "transcript.txt").write_text(f"{summed_up(before)}\n\n{done.stdout}\n{summed_up(after)}\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "taking up an erasure that did not end" in done.stdout

    assert after == {}
    # Nobody else's lines changed, and the line that the copybook has too is read under its name.
    for split, rows in others.items():
        left = rows_of(Artifact(published / "lines"), split)
        assert {key: image for key, image in rows.items() if key[1] != document}.items() <= left.items()
        assert {key[1] for key in left.keys() - rows.keys()} <= {COPYBOOK}
        assert len(left.keys() - rows.keys()) == (split == "test")
    # In the remote no object changed or went that did not hold the document.
    remote = dict(everywhere(world)["remote"])
    assert {key: remote.get(key) for key in kept_objects} == kept_objects
    middle = erased[len(erased) // 2 :][:48]
    assert garbage_collected(world, middle)


def test_old_versions_come_back_but_for_what_was_erased(world, tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(world["root"] / "work/data"), str(clone)], check=True)
    versions.dvc(["pull", "--quiet"], clone)
    for name in ("lines", "validation", "selection", "codebook"):
        artifact = Artifact(clone / name)
        assert all(artifact.read_bytes(file) for file in artifact.names())
    # Of the old version, a file that was not erased comes by itself, one that was does not.
    files = {name: md5 for name, md5 in listed(world, "lines") if not name.endswith(".json")}
    there = set(world["server"].keys("other-bucket", "dvc/files/md5/"))
    erased = {name for name, md5 in files.items() if f"dvc/files/md5/{md5[:2]}/{md5[2:]}" not in there}
    assert {name.partition("/")[0] for name in erased} == {
        "documents.parquet",
        "duplicates.parquet",
        "test",
        "unlabeled",
    }
    repository = str(world["root"] / "work/data")
    for name in (max(erased), max(files.keys() - erased)):
        command = ["dvc", "get", "--quiet", "--rev", world["commit"], repository, f"lines/{name}", "-o", "got"]
        came = subprocess.run([sys.executable, "-m", *command], capture_output=True, check=False, cwd=tmp_path)
        assert (came.returncode == 0) == (name not in erased) == (tmp_path / "got").is_file()


def listed(world, output: str) -> list[tuple[str, str]]:
    """Name and md5 of every file of an output of the first version of the data."""
    lock = subprocess.run(
        ["git", "show", f"{world['commit']}:dvc.lock"], check=True, capture_output=True, cwd=world["root"] / "work/data"
    )
    stages_of = yaml.safe_load(lock.stdout)["stages"].values()
    md5 = next(out["md5"] for stage in stages_of for out in stage["outs"] if out["path"] == output)
    key = f"dvc/files/md5/{md5[:2]}/{md5[2:]}"
    found = world["server"].client().get_object(Bucket="other-bucket", Key=key)["Body"].read()
    return [(entry["relpath"], entry["md5"]) for entry in json.loads(found)]


def test_models_that_saw_the_document_are_tagged_and_show_no_line(world):
    from maskocr_core.services import logged, tracking

    transcript = (world["root"] / "transcript.txt").read_text()
    client = tracking.connection()
    version = client.get_model_version("maskocr", "1")
    saw = next(said for model, number, said in logged.versions() if (model, number) == ("maskocr", "1"))
    # The document's own lines were test lines and one that is quarantined: no model was trained on them.
    assert saw["complete"] and "saw_forgotten" not in version.tags and "MLflow model" not in transcript
    done = forget("--document", "rendered/train/document-03", "--reason", "asked by letter", "--work", "work", *ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    tag = client.get_model_version("maskocr", "1").tags["saw_forgotten"]
    assert tag.endswith(": lines of 1 document")
    assert f"MLflow model maskocr version 1: saw_forgotten = {tag}" in done.stdout
    assert search(world, sought(world, "rendered/train/document-03")) == {}


def test_the_model_reads_on_and_the_data_stages_find_nothing_to_do(world):
    import mlflow

    model = mlflow.pyfunc.load_model("models:/maskocr/1")
    lines_now = Artifact(world["published"] / "lines")
    images = [image for image in rows_of(lines_now, "test").values()]
    import pandas as pd

    assert len(model.predict(pd.DataFrame({"image": images}))) == len(images)
    status = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json"],
        cwd=world["root"] / "work/data",
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(status.stdout) == {}
