import os
import shutil
from pathlib import Path

import pytest
import rendered
from conftest import run_stage
from servers import DEAD_ENDPOINT, lead

from maskocr_core import config, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.data import lines
from maskocr_core.services import s3, storage

pytestmark = pytest.mark.filterwarnings("ignore")
DATA_STAGES = {"validate": ("lines",), "fit": ("lines", "validation"), "quantize": ("lines", "selection")}
OUTPUTS = ("lines", "validation", "selection", "codebook")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small packs of all splits, and a side table's worth of nothing else."""
    root = tmp_path_factory.mktemp("packs")
    for seed, (split, documents) in enumerate((("train", 6), ("val", 2), ("test", 2), ("unlabeled", 10))):
        rows = rendered.rows(documents=documents, lines=4, split=split, seed=seed, degrade=0.2)
        rendered.parquet(root / f"{split}.parquet", rows)
    return root


def ingest(data, out="lines") -> Artifact:
    place = Path(out).absolute()
    stages.get("ingest")(config.load("smoke"), data_uri=str(data), lines_out=place)
    return Artifact(place)


def data_road(root, data) -> dict[str, Artifact]:
    """The data stages from raw lines to the codebook, each in its folder below `root`."""
    root.mkdir()
    ingest(data, root / "lines")
    for name, inputs in DATA_STAGES.items():
        output = OUTPUTS[1 + list(DATA_STAGES).index(name)]
        arguments = {given: root / given for given in inputs} | {f"{output}_out": root / output}
        stages.get(name)(config.load("smoke"), **arguments)
    return {name: Artifact(root / name) for name in OUTPUTS}


def one_sentence(error) -> str:
    message = str(error.value)
    assert "\n" not in message and "Traceback" not in message
    return message


# A folder


def test_files_are_listed_by_name_and_hidden_ones_left_out(tmp_path):
    for name in ("b/2.png", "a.png", "b/1.png", ".hidden"):
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).write_bytes(b"x")
    assert [file.name for file in storage.files(str(tmp_path / "x"))] == ["a.png", "b/1.png", "b/2.png"]


def test_one_file_may_be_named_instead_of_its_folder(folder):
    (file,) = storage.files(str(folder / "train.parquet"))
    assert file.name == "train.parquet" and file.size == (folder / "train.parquet").stat().st_size


def test_a_fingerprint_changes_with_content_names_and_number_of_files(tmp_path):
    place = tmp_path / "x"
    place.mkdir()
    (place / "a.png").write_bytes(b"a")
    seen = [storage.fingerprint(str(place))]
    assert storage.fingerprint(str(place)) == seen[0]
    os.utime(place / "a.png", ns=(1, 1))
    seen.append(storage.fingerprint(str(place)))
    (place / "b.png").write_bytes(b"a")
    seen.append(storage.fingerprint(str(place)))
    (place / "b.png").rename(place / "c.png")
    seen.append(storage.fingerprint(str(place)))
    assert len(set(seen)) == 4


def test_a_file_that_is_gone_is_named_in_one_sentence(tmp_path, folder):
    artifact = ingest(folder)
    os.unlink(tmp_path / "lines" / artifact.names("train/")[0])
    with pytest.raises(ValueError, match=r"part-\w+.parquet") as error:
        lines.index(artifact, "train")
    one_sentence(error)


# S3


@pytest.mark.services
def test_lines_from_s3_are_the_lines_from_the_folder(at_s3, folder, monkeypatch, tmp_path):
    at_s3.put_folder(folder, "s3://lines-bucket/packs")
    local = ingest(folder, "local")
    assert ingest("s3://lines-bucket/packs", "remote").version == local.version
    assert ingest("s3://lines-bucket/packs/", "slash").version == local.version


@pytest.mark.services
def test_images_with_their_text_are_read_from_s3(at_s3, tmp_path):
    pairs = rendered.documents(tmp_path / "pairs", documents=12, lines=1, degrade=0.2)
    at_s3.put_folder(pairs, "s3://lines-bucket/pairs")
    assert ingest("s3://lines-bucket/pairs", "remote").version == ingest(pairs, "local").version


@pytest.mark.services
def test_a_prefix_does_not_take_its_namesakes(at_s3):
    for key in ("own/a.png", "own-other/b.png", "ownership.png"):
        at_s3.put(f"s3://lines-bucket/names/{key}", b"x")
    assert [file.name for file in storage.files("s3://lines-bucket/names/own")] == ["a.png"]
    (file,) = storage.files("s3://lines-bucket/names/own/a.png")
    assert file.uri == "s3://lines-bucket/names/own/a.png" and file.name == "a.png"


@pytest.mark.services
def test_more_objects_than_one_answer_holds_are_all_listed(at_s3):
    client = at_s3.client()
    for number in range(1003):
        client.put_object(Bucket="other-bucket", Key=f"many/{number:04}.png", Body=b"")
    assert len(storage.files("s3://other-bucket/many")) == 1003


@pytest.mark.services
def test_only_the_asked_bytes_of_an_object_are_read(at_s3):
    at_s3.put("s3://lines-bucket/digits", b"0123456789")
    with storage.open_input("s3://lines-bucket/digits") as file:
        file.seek(4)
        assert file.read(3) == b"456" and file.size() == 10


@pytest.mark.services
def test_a_fingerprint_changes_when_an_object_does(at_s3):
    at_s3.put("s3://lines-bucket/print/a.png", b"one")
    first = storage.fingerprint("s3://lines-bucket/print")
    at_s3.put("s3://lines-bucket/print/a.png", b"one")
    assert storage.fingerprint("s3://lines-bucket/print") == first
    at_s3.put("s3://lines-bucket/print/a.png", b"two")
    assert storage.fingerprint("s3://lines-bucket/print") != first


@pytest.mark.services
def test_changed_objects_behind_one_uri_are_ingested_anew(at_s3, folder):
    at_s3.put_folder(folder, "s3://lines-bucket/changing")
    before = ingest("s3://lines-bucket/changing").version
    at_s3.client().delete_object(Bucket="lines-bucket", Key="changing/unlabeled.parquet")
    assert ingest("s3://lines-bucket/changing").version != before


@pytest.mark.services
def test_with_a_store_the_big_files_lie_there_and_the_data_stages_read_them(at_s3, folder, monkeypatch, tmp_path):
    here = data_road(tmp_path / "here", folder)
    monkeypatch.setenv("MASKOCR_STORE", "s3://other-bucket/store")
    monkeypatch.setenv("MASKOCR_WORK", str(tmp_path / "other-stages"))
    there = data_road(tmp_path / "there", folder)
    assert {name: artifact.version for name, artifact in there.items()} == {
        name: artifact.version for name, artifact in here.items()
    }
    left = [path for place in ("there", "other-stages") for path in (tmp_path / place).rglob("*.*")]
    assert left and not [path for path in left if path.suffix in (".parquet", ".safetensors")]
    stored = {
        entry["uri"]: entry["sha256"]
        for artifact in there.values()
        for entry in artifact.manifest["files"]
        if "uri" in entry
    }
    assert {f"s3://other-bucket/{key}" for key in at_s3.keys("other-bucket", "store/")} == set(stored)
    for uri, digest in stored.items():
        assert uri.startswith(f"s3://other-bucket/store/{digest[:2]}/{digest}")
    for artifact in there.values():
        for name in artifact.names():
            artifact.read_bytes(name)  # verifies the digest


@pytest.mark.services
def test_with_a_store_the_whole_road_ends_in_a_registered_model(at_s3, raw, smoke, monkeypatch, tmp_path):
    monkeypatch.setenv("MASKOCR_STORE", "s3://other-bucket/road")
    for name in stages.NAMES:
        run_stage(name, smoke, raw, tmp_path / "road")
    assert not list((tmp_path / "road").rglob("*.safetensors")) + list((tmp_path / "road").rglob("*.parquet"))
    assert Artifact(tmp_path / "road/registration").read_json("registration.json")["version"] == "1"


@pytest.mark.services
def test_an_artifact_whose_files_lie_in_the_store_may_be_moved(at_s3, folder, monkeypatch, tmp_path):
    monkeypatch.setenv("MASKOCR_STORE", "s3://other-bucket/moved")
    artifact = ingest(folder)
    moved = Artifact(Path(shutil.copytree(artifact.folder, tmp_path / "elsewhere")))
    shutil.rmtree(artifact.folder)
    assert lines.index(moved, "train").num_rows == 24


@pytest.mark.services
def test_an_object_changed_in_the_store_is_noticed(at_s3, folder, monkeypatch):
    monkeypatch.setenv("MASKOCR_STORE", "s3://other-bucket/changed")
    artifact = ingest(folder)
    (entry,) = [entry for entry in artifact.manifest["files"] if entry["name"] == "refused.parquet"]
    at_s3.put(entry["uri"], b"something else")
    with pytest.raises(ValueError, match="was changed after it was written"):
        artifact.read_bytes("refused.parquet")


@pytest.mark.services
def test_an_object_that_is_gone_from_the_store_is_named_in_one_sentence(at_s3, folder, monkeypatch):
    monkeypatch.setenv("MASKOCR_STORE", "s3://other-bucket/gone")
    artifact = ingest(folder)
    for key in at_s3.keys("other-bucket", "gone/"):
        at_s3.client().delete_object(Bucket="other-bucket", Key=key)
    with pytest.raises(ValueError, match="s3://other-bucket/gone/") as error:
        lines.index(artifact, "train")
    one_sentence(error)


WRONG = {
    "a bucket that is not there": ({}, "s3://no-such-bucket/x"),
    "a wrong secret": ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "s3://lines-bucket/x"),
    "an unknown key": ({"AWS_ACCESS_KEY_ID": "nobody"}, "s3://lines-bucket/x"),
    "an endpoint where nobody listens": ({"AWS_ENDPOINT_URL": DEAD_ENDPOINT}, "s3://lines-bucket/x"),
}


@pytest.mark.services
@pytest.mark.parametrize("wrong", WRONG)
def test_data_that_cannot_be_reached_are_named_in_one_sentence(at_s3, monkeypatch, wrong):
    changes, uri = WRONG[wrong]
    lead(monkeypatch, changes)
    with pytest.raises(ValueError) as error:
        ingest(uri)
    message = one_sentence(error)
    assert uri in message and "AWS_ENDPOINT_URL" in message


@pytest.mark.services
@pytest.mark.parametrize("wrong", WRONG)
def test_a_store_that_cannot_be_reached_is_named_in_one_sentence(at_s3, folder, monkeypatch, tmp_path, wrong):
    changes, uri = WRONG[wrong]
    lead(monkeypatch, changes)
    monkeypatch.setenv("MASKOCR_STORE", uri)
    with pytest.raises(ValueError) as error:
        ingest(folder)
    message = one_sentence(error)
    assert uri in message and "AWS_ENDPOINT_URL" in message
    assert not (tmp_path / "lines").exists()


@pytest.mark.services
@pytest.mark.parametrize("wrong", WRONG)
def test_a_bucket_can_be_checked_before_it_is_needed(at_s3, monkeypatch, wrong):
    s3.check_bucket("s3://lines-bucket/x")
    changes, uri = WRONG[wrong]
    lead(monkeypatch, changes)
    with pytest.raises(ValueError, match="does not answer") as error:
        s3.check_bucket(uri)
    one_sentence(error)


@pytest.mark.services
def test_a_prefix_with_nothing_below_it_is_named(at_s3):
    with pytest.raises(ValueError, match="s3://lines-bucket/nothing: there is no file here"):
        ingest("s3://lines-bucket/nothing")


def test_a_uri_without_a_bucket_is_shown_the_right_form():
    with pytest.raises(ValueError, match="the form is s3://bucket/prefix"):
        storage.files("s3:///lines")
