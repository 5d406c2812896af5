"""fresh: what is new is claimed by one run, once, whoever else claims and whatever else arrives."""

import contextlib
import dataclasses
import json
import os
import threading
import time
from pathlib import Path

import pytest
import rendered
from hypothesis import given, settings
from hypothesis import strategies as st

from maskocr_core import config, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.data import claims, lines, readers
from maskocr_core.services import mapping, storage
from maskocr_core.services.stored import File

SETTLE, ABANDONED = 60.0, 3600.0
PAGE = (
    b'<PcGts xmlns="http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15">'
    b'<Page imageFilename="../scan 7.png"/></PcGts>'
)
SMOKE = config.load("smoke", ["retrain.settle_minutes=1", "retrain.abandoned_hours=1"])


def put(place: Path, *names: str, age: float = 120.0, content: bytes = b"x") -> None:
    """Files with these names below a folder, so many seconds old."""
    for name in names:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (time.time() - age,) * 2)


@pytest.fixture
def place(tmp_path) -> Path:
    (tmp_path / "new").mkdir()
    return tmp_path / "new"


def take(place: Path, run: str = "first") -> claims.Taken:
    return claims.take(str(place), str(place.parent / "claims"), run, SETTLE, ABANDONED)


def end(place: Path, taken: claims.Taken, state: str = "done") -> claims.Claim:
    return claims.end(str(place.parent / "claims"), taken.claim, state, "because")


def names(found: tuple[File, ...]) -> list[str]:
    return [file.name for file in found]


def objects(taken: claims.Taken) -> list[str]:
    return names(taken.claim.objects) if taken.claim else []


# What is new


def test_a_place_where_nothing_is_gives_no_claim(place):
    taken = take(place)
    assert taken.claim is None and not list((place.parent / "claims").glob("*.json"))


def test_what_was_claimed_is_not_claimed_again(place):
    put(place, "a.png", "b.parquet", "c.tar")
    first = take(place)
    end(place, first)
    put(place, "d.png")
    assert objects(first) == ["a.png", "b.parquet", "c.tar"] and objects(take(place, "second")) == ["d.png"]


def test_files_that_no_reader_reads_are_left_aside(place):
    put(place, "notes.json", "scan.pdf", ".hidden.png", "a.png")
    assert objects(take(place)) == ["a.png"]


def test_objects_younger_than_the_settling_time_wait(place):
    put(place, "old.png")
    put(place, "young.png", age=1)
    taken = take(place)
    assert objects(taken) == ["old.png"] and taken.waiting == ("young.png",)


def test_an_object_from_the_future_waits_and_is_told(place):
    put(place, "skewed.png", age=-3600)
    taken = take(place)
    assert taken.claim is None and taken.waiting == ("skewed.png",)


def test_an_object_waits_for_its_young_partner(place):
    put(place, "line.png", "0001.png")
    put(place, "line.gt.txt", "0001.xml", age=1)
    taken = take(place)
    assert taken.claim is None and taken.waiting == ("0001.png", "0001.xml", "line.gt.txt", "line.png")


def test_a_text_without_image_and_a_page_file_without_page_are_halves(place):
    put(place, "lonely.gt.txt", "page/0001.xml")
    taken = take(place)
    assert taken.claim is None and taken.halves == ("lonely.gt.txt", "page/0001.xml")


def test_a_page_file_is_claimed_with_the_image_that_it_names(place):
    put(place, "page/0001.xml", content=PAGE)
    put(place, "scan 7.png")
    assert objects(take(place)) == ["page/0001.xml", "scan 7.png"]


def test_a_text_that_comes_late_takes_its_image_along_again(place):
    put(place, "line.png")
    end(place, take(place))
    put(place, "line.gt.txt")
    taken = take(place, "second")
    assert objects(taken) == ["line.gt.txt"] and names(taken.claim.again) == ["line.png"]
    assert names(taken.claim.files) == ["line.gt.txt", "line.png"]


def test_an_object_that_changed_is_new(place):
    put(place, "a.png")
    end(place, take(place))
    put(place, "a.png", age=100, content=b"other")
    assert objects(take(place, "second")) == ["a.png"]


def test_an_object_that_comes_late_with_an_old_time_is_not_missed(place):
    put(place, "a.png")
    end(place, take(place))
    put(place, "b.png", age=10_000)
    assert objects(take(place, "second")) == ["b.png"]


# Whose it is


def test_a_run_goes_on_with_its_own_claim_and_nothing_is_mixed_in(place):
    put(place, "a.png")
    first = take(place)
    put(place, "b.png")
    again = take(place)
    assert again.claim.number == first.claim.number and objects(again) == ["a.png"]


def test_the_claim_of_another_run_is_left_to_it_and_told(place):
    put(place, "a.png")
    first = take(place)
    put(place, "b.png")
    other = take(place, "second")
    assert objects(other) == ["b.png"] and [claim.number for claim in other.held] == [first.claim.number]


def test_an_abandoned_claim_is_taken_over_whole_and_the_run_that_lost_it_is_told(place, monkeypatch):
    put(place, "a.png")
    first = take(place)
    put(place, "b.png")
    later, clock = time.time() + ABANDONED + 10, storage.clock
    monkeypatch.setattr(storage, "clock", lambda uri: clock(uri) and later)
    second = take(place, "second")
    assert second.claim.number == first.claim.number and second.claim.run == "second" and objects(second) == ["a.png"]
    with pytest.raises(ValueError, match="claim 1 is claimed, by run second: its objects are no longer this run's"):
        end(place, first)
    assert objects(take(place, "third")) == ["b.png"]


def test_a_claim_that_is_renewed_is_not_abandoned(place, monkeypatch):
    put(place, "a.png")
    first = take(place)
    later, clock = time.time() + ABANDONED - 10, storage.clock
    monkeypatch.setattr(storage, "clock", lambda uri: clock(uri) and later)
    claims.renew(str(place.parent / "claims"), first.claim)
    monkeypatch.setattr(storage, "clock", lambda uri: clock(uri) and later + ABANDONED - 10)
    assert take(place, "second").claim is None


def test_what_vanished_from_an_unfinished_claim_is_left_out_with_its_pair_and_told(place):
    put(place, "a.png", "b.png", "b.gt.txt", "c.png", "c.gt.txt")
    take(place)
    (place / "b.gt.txt").unlink()
    put(place, "c.png", content=b"other")
    taken = take(place)
    assert objects(taken) == ["a.png"] and taken.vanished == ("b.gt.txt", "c.png")
    end(place, taken)
    assert objects(take(place, "second")) == ["b.png", "c.gt.txt", "c.png"]


def test_a_claim_of_which_all_vanished_makes_room_for_the_next(place):
    put(place, "a.png")
    take(place)
    (place / "a.png").unlink()
    put(place, "b.png")
    taken = take(place)
    assert objects(taken) == ["b.png"] and taken.claim.number == 2 and taken.vanished == ("a.png",)


def test_what_was_returned_is_claimed_together_with_what_came_since(place):
    put(place, "a.png")
    end(place, take(place), "returned")
    put(place, "b.png")
    assert objects(take(place, "second")) == ["a.png", "b.png"]


def test_a_claim_ends_once(place):
    put(place, "a.png")
    taken = take(place)
    assert end(place, taken) == end(place, taken)
    with pytest.raises(ValueError, match="claim 1 is done"):
        end(place, taken, "returned")
    with pytest.raises(ValueError, match="claim 1 is done"):
        claims.renew(str(place.parent / "claims"), taken.claim)


def test_places_do_not_share_their_claims(place, tmp_path):
    put(place, "a.png")
    put(tmp_path / "elsewhere", "a.png")
    take(place)
    taken = claims.take(str(tmp_path / "elsewhere"), str(tmp_path / "claims"), "first", SETTLE, ABANDONED)
    assert objects(taken) == ["a.png"] and taken.claim.number == 2


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format_version": 1}', b"\xff"])
def test_a_damaged_claim_is_named(place, content):
    put(place, "a.png")
    take(place)
    (place.parent / "claims/00000001.json").write_bytes(content)
    with pytest.raises(ValueError, match="00000001.json is damaged: it holds no claim"):
        take(place)


def test_a_claim_of_another_format_is_named(place):
    put(place, "a.png")
    taken = take(place)
    facts = claims.record(taken.claim) | {"format_version": 99}
    (place.parent / "claims/00000001.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="format_version 99 is not 1"):
        take(place)


# Any interleaving


class Store:
    """A store in memory, in which anything may happen between any two requests of a claimer."""

    DATA, CLAIMS = "s3://data", "s3://claims"

    def __init__(self, script: list[tuple]):
        self.script, self.now = list(script), 0.0
        self.objects: dict[str, File] = {}
        self.arrive("a.png", 0)
        self.arrive("b.png", 0)
        self.now = SETTLE
        self.written: dict[str, bytes] = {}
        self.busy: set[str] = set()
        self.holds: dict[str, claims.Claim] = {}
        self.granted: set[str] = set()

    def step(self) -> None:
        if not self.script:
            return
        what, *arguments = self.script.pop(0)
        getattr(self, what)(*arguments)

    def rest(self) -> None:
        pass

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def arrive(self, name: str, content: int) -> None:
        self.objects[name] = File(f"{self.DATA}/{name}", name, 1, f"etag {content}", self.now)

    def vanish(self, name: str) -> None:
        self.objects.pop(name, None)

    def take(self, run: str) -> None:
        """A whole `take`, in the middle of another one's unless that is of the same run."""
        if run in self.busy:
            return
        self.busy.add(run)
        try:
            taken = claims.take(self.DATA, self.CLAIMS, run, SETTLE, ABANDONED)
            if taken.claim:
                self.holds[run] = taken.claim
                self.granted.add(taken.claim.id)
        finally:
            self.busy.remove(run)

    def end(self, run: str, state: str) -> None:
        if run not in self.busy and (held := self.holds.pop(run, None)):
            self.busy.add(run)
            with contextlib.suppress(ValueError):  # it was taken over
                claims.end(self.CLAIMS, held, state, "")
            self.busy.remove(run)

    # What `claims` asks of storage

    def absolute(self, uri: str) -> str:
        return uri

    def clock(self, uri: str) -> float:
        self.step()
        return self.now

    def files(self, uri: str, *, some: bool = True) -> list[File]:
        self.step()
        if uri == self.DATA:
            return sorted(self.objects.values(), key=lambda file: file.name)
        return [File(place, place.rpartition("/")[2], 1, "") for place in sorted(self.written)]

    def content(self, uri: str) -> bytes:
        self.step()
        return self.written[uri]

    def create(self, uri: str, content: bytes) -> bool:
        while (found := self.written.get(uri)) in (None, content):
            self.step()
            if self.written.get(uri) == found:
                self.written[uri] = content
                return True
        return False

    def replace(self, uri: str, change) -> None:
        while True:
            found = self.written.get(uri)
            content = change(found)
            self.step()
            if self.written.get(uri) == found:  # the condition of the PUT
                self.written[uri] = content
                return

    def claimed(self) -> list[claims.Claim]:
        return [claims.of_record(json.loads(content)) for _, content in sorted(self.written.items())]


NAMES = st.sampled_from(["b.gt.txt", "b.png", "a.png"])
RUNS = st.sampled_from(["first", "second", "third"])
TAKE = st.tuples(st.just("take"), RUNS)
ACTIONS = st.one_of(
    TAKE,
    TAKE,
    st.just(("rest",)),
    st.tuples(st.just("wait"), st.sampled_from([SETTLE, 2 * ABANDONED, 1.0])),
    st.tuples(st.just("arrive"), NAMES, st.integers(1, 2)),
    st.tuples(st.just("vanish"), NAMES),
    st.tuples(st.just("end"), RUNS, st.sampled_from(["done", "returned"])),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(ACTIONS, max_size=50))
def test_every_object_is_in_one_claim_whatever_happens_meanwhile_and_none_is_lost(script):
    store = Store(script)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "storage", store)
        while store.script:
            store.step()
            once(store)
        # Everything settles, and runs come and end until nothing is new.
        store.now += SETTLE + 2 * ABANDONED
        for _ in range(20):
            store.take("last")
            if "last" not in store.holds:
                break
            store.end("last", "done")
        assert not claims.take(store.DATA, store.CLAIMS, "last", SETTLE, ABANDONED).claim
        once(store)
        done = {(o.name, o.stamp) for claim in store.claimed() if claim.state == "done" for o in claim.objects}
        whole = {name for name in store.objects if name != "b.gt.txt" or "b.png" in store.objects}
        assert {(name, store.objects[name].stamp) for name in whole} <= done


@pytest.mark.parametrize("requests", range(8))
def test_of_two_who_take_over_at_once_one_gets_the_claim(requests, monkeypatch):
    store = Store([])
    monkeypatch.setattr(claims, "storage", store)
    store.take("first")
    store.wait(2 * ABANDONED)
    store.script = [("rest",)] * requests + [("take", "second")]
    store.take("third")
    once(store)
    assert sorted(len(store.holds[run].objects) for run in ("second", "third") if run in store.holds) == [2]


def once(store: Store) -> None:
    """No object is in two claims that count, no claim has half a pair, nothing young was taken, and no run lost a claim
    but by its own long silence."""
    counted = [claim for claim in store.claimed() if claim.state != "returned"]
    every = [(o.name, o.stamp) for claim in counted for o in claim.objects]
    assert len(every) == len(set(every))
    for claim in counted:
        held = {file.name for file in claim.files}
        assert "b.gt.txt" not in held or "b.png" in held
        assert all(file.modified <= claim.taken - SETTLE for file in claim.files)
    stored = {claim.number: claim for claim in store.claimed()}
    assert store.granted <= {claim.id for claim in stored.values()}
    for run, held in store.holds.items():
        if run not in store.busy and stored[held.number].run != run:
            assert stored[held.number].taken - held.taken > ABANDONED


# The stage, and what ingest makes of it


@pytest.fixture(scope="module")
def packs(tmp_path_factory) -> Path:
    """A labelled set with unlabelled lines of its own, and two batches of new ones."""
    root = tmp_path_factory.mktemp("packs")
    for seed, (split, documents) in enumerate((("train", 6), ("val", 2), ("test", 2), ("unlabeled", 3))):
        rows = rendered.rows(documents=documents, lines=4, split=split, seed=seed, degrade=0.2)
        rendered.parquet(root / f"labelled/{split}.parquet", rows)
    for number in (1, 2):
        rows = rendered.rows(documents=number, lines=4, split="unlabeled", source=f"batch {number}", seed=40 + number)
        rendered.parquet(root / f"new/batch-{number}.parquet", rows)
    return root


def fresh(new: str, at: str, labelled: str = "", out: str = "claim", settle: int = 0) -> dict:
    smoke = config.load("smoke", [f"retrain.settle_minutes={settle}"])
    arguments = {"data_uri": new, "claims_uri": at, "labelled_uri": labelled, "claim_out": Path(out).absolute()}
    metrics = stages.get("fresh")(smoke, **arguments)
    return Artifact(Path(out).absolute()).read_json("claim.json") | {"metrics": metrics}


def counts(data_uri: str, out: str = "lines") -> dict[str, int]:
    stages.get("ingest")(config.load("smoke"), data_uri=data_uri, lines_out=Path(out).absolute())
    artifact = Artifact(Path(out).absolute())
    return {split: lines.count(artifact, split) for split in ("train", "val", "test", "unlabeled")}


def test_ingest_reads_what_is_claimed_and_the_labelled_lines_beside_it(packs):
    said = fresh(str(packs / "new"), "claims", str(packs / "labelled"))
    assert said["new"] and said["metrics"]["objects"] == 2
    assert counts(said["data_uri"]) == {"train": 24, "val": 8, "test": 8, "unlabeled": 12}


def test_ingest_reads_nothing_that_came_after_the_claim(packs, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKOCR_RUN", "first")
    new = tmp_path / "arriving"
    new.mkdir()
    (new / "1.parquet").write_bytes((packs / "new/batch-1.parquet").read_bytes())
    said = fresh(str(new), "claims", str(packs / "labelled"))
    (new / "2.parquet").write_bytes((packs / "new/batch-2.parquet").read_bytes())
    assert counts(said["data_uri"])["unlabeled"] == 4
    again = fresh(str(new), "claims", str(packs / "labelled"), "again")
    assert again["data_uri"] == said["data_uri"] and again["claim"]["number"] == 1


def test_lines_of_a_claim_are_called_by_their_folder(tmp_path):
    rendered.documents(tmp_path / "letters", documents=2, lines=2, labelled=False)
    said = fresh(str(tmp_path / "letters"), "claims")
    (unit,) = readers.plan(said["data_uri"], SMOKE.data)
    assert unit.source == "letters" and len(unit.items) == 4


def test_another_labelled_set_is_other_data_to_the_stages(packs, tmp_path):
    files = (File("x", "a.png", 1, "stamp"),)
    uris = [
        storage.put_list(str(tmp_path / name / "new"), storage.Listing("root", beside, files))
        for name, beside in (("one", str(packs / "labelled")), ("two", str(packs / "new")), ("three", ""))
    ]
    assert len({storage.fingerprint(uri) for uri in uris}) == 3
    assert storage.files(uris[0]) == [dataclasses.replace(files[0], uri="root/a.png")]


def test_a_list_that_is_none_is_named(tmp_path):
    (tmp_path / "list").write_text('{"format_version": 7}')
    with pytest.raises(ValueError, match="is no list of files of format 1"):
        storage.files(f"list+{tmp_path / 'list'}")


def test_nothing_new_is_said_and_is_no_failure(tmp_path, capsys):
    (tmp_path / "new").mkdir()
    said = fresh(str(tmp_path / "new"), "claims")
    assert not said["new"] and said["data_uri"] == "" and said["metrics"]["objects"] == 0
    assert f"fresh: nothing to do: there is nothing new below {tmp_path / 'new'}" in capsys.readouterr().out


def test_how_to_go_on_with_the_claim_of_a_dead_run_is_said(packs, capsys, monkeypatch):
    monkeypatch.setenv("MASKOCR_RUN", "dead")
    fresh(str(packs / "new"), "claims")
    monkeypatch.setenv("MASKOCR_RUN", "alive")
    assert not fresh(str(packs / "new"), "claims", out="other")["new"]
    assert "go on with it at once: MASKOCR_RUN='dead'" in capsys.readouterr().out
    monkeypatch.setenv("MASKOCR_RUN", "dead")
    assert fresh(str(packs / "new"), "claims", out="again")["claim"]["number"] == 1


@pytest.fixture
def only_version_7(monkeypatch):
    from maskocr_core.services import registered

    monkeypatch.setattr(registered, "version_tags", lambda registry, version: {} if version == "7" else None)


def states(at: str) -> list[str]:
    return [claim.state for claim in claims.read(str(Path(at).absolute()))]


def test_a_claim_whose_run_registered_a_model_and_died_is_done_whoever_comes_next(
    packs, tmp_path, monkeypatch, capsys, only_version_7
):
    from maskocr_core.services import tracking

    new = tmp_path / "arriving"
    put(new, "1.parquet", content=(packs / "new/batch-1.parquet").read_bytes())
    monkeypatch.setenv("MASKOCR_RUN", "dead")
    fresh(str(new), "twins", out="twin")  # of another run that had its name by chance: the same number, another claim
    assert fresh(str(new), "claims")["claim"]["number"] == 1
    tracking.record_stage(SMOKE.registry, "register", {"version": 7.0}, {})
    put(new, "2.parquet", content=(packs / "new/batch-2.parquet").read_bytes())
    monkeypatch.setenv("MASKOCR_RUN", "alive")
    fresh(str(new), "twins", out="twin")
    assert "is done" not in capsys.readouterr().out and states("twins") == ["claimed", "claimed"]
    said = fresh(str(new), "claims", out="other")
    assert "claim 1 is done: maskocr version 7, which run dead registered" in capsys.readouterr().out
    assert states("claims") == ["done", "claimed"]
    assert [one["name"] for one in said["claim"]["objects"]] == ["2.parquet"]


def test_a_claim_whose_model_was_deleted_is_not_done(packs, tmp_path, monkeypatch, only_version_7):
    from maskocr_core.services import tracking

    monkeypatch.setenv("MASKOCR_RUN", "dead")
    fresh(str(packs / "new"), "claims")
    tracking.record_stage(SMOKE.registry, "register", {"version": 6.0}, {})
    assert fresh(str(packs / "new"), "claims", out="again")["claim"]["number"] == 1 and states("claims") == ["claimed"]


def test_a_model_of_an_earlier_claim_of_the_same_run_does_not_end_the_next(
    packs, tmp_path, monkeypatch, only_version_7
):
    from maskocr_core.services import tracking

    new = tmp_path / "arriving"
    put(new, "1.parquet", content=(packs / "new/batch-1.parquet").read_bytes())
    monkeypatch.setenv("MASKOCR_RUN", "every night")
    fresh(str(new), "claims")
    tracking.record_stage(SMOKE.registry, "register", {"version": 7.0}, {})
    put(new, "2.parquet", content=(packs / "new/batch-2.parquet").read_bytes())
    assert fresh(str(new), "claims", out="second")["claim"]["number"] == 2
    again = fresh(str(new), "claims", out="again")
    assert again["claim"]["number"] == 2 and [one["name"] for one in again["claim"]["objects"]] == ["2.parquet"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such file or folder"):
        fresh(str(tmp_path / "nowhere"), "claims")


# S3


@pytest.mark.services
def test_more_objects_than_one_answer_holds_are_claimed(at_s3):
    client = at_s3.client()
    for number in range(1003):
        client.put_object(Bucket="other-bucket", Key=f"many/{number:04}.png", Body=b"")
    taken = claims.take("s3://other-bucket/many", "s3://other-bucket/claims/many", "first", 0, ABANDONED)
    assert len(taken.claim.objects) == 1003
    claims.end("s3://other-bucket/claims/many", taken.claim, "done", "")
    client.put_object(Bucket="other-bucket", Key="many/0500-later.png", Body=b"")
    taken = claims.take("s3://other-bucket/many", "s3://other-bucket/claims/many", "second", 0, ABANDONED)
    assert objects(taken) == ["0500-later.png"]


@pytest.mark.services
def test_an_object_is_claimed_when_its_upload_is_complete_and_not_before(at_s3):
    client = at_s3.client()
    at = {"Bucket": "lines-bucket", "Key": "halves/large.parquet"}
    upload = client.create_multipart_upload(**at)["UploadId"]
    part = client.upload_part(**at, UploadId=upload, PartNumber=1, Body=b"x" * 5)
    place = ("s3://lines-bucket/halves", "s3://lines-bucket/claims/halves", "first", 0, ABANDONED)
    assert claims.take(*place).claim is None
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    client.complete_multipart_upload(**at, UploadId=upload, MultipartUpload=parts)
    assert objects(claims.take(*place)) == ["large.parquet"]


@pytest.mark.services
def test_an_object_that_was_put_again_is_new_only_with_another_etag(at_s3):
    data, at = "s3://lines-bucket/again", "s3://lines-bucket/claims/again"
    at_s3.put(f"{data}/a.png", b"one")
    claims.end(at, claims.take(data, at, "first", 0, ABANDONED).claim, "done", "")
    at_s3.put(f"{data}/a.png", b"one")
    assert claims.take(data, at, "second", 0, ABANDONED).claim is None
    at_s3.put(f"{data}/a.png", b"two")
    assert objects(claims.take(data, at, "second", 0, ABANDONED)) == ["a.png"]


@pytest.mark.services
def test_the_clock_of_the_store_says_what_is_young(at_s3, monkeypatch):
    data, at = "s3://lines-bucket/clock", "s3://lines-bucket/claims/clock"
    at_s3.put(f"{data}/a.png", b"one")
    young = claims.take(data, at, "first", SETTLE, ABANDONED)
    assert young.claim is None and young.waiting == ("a.png",)
    assert abs(young.now - time.time()) < 30  # here both are one machine's; nothing but the store was asked


@pytest.mark.services
def test_two_claimers_at_once_share_the_objects_and_no_object_is_in_both_claims(at_s3):
    data, at = "s3://lines-bucket/race", "s3://lines-bucket/claims/race"
    for round_ in range(3):
        for number in range(5):
            at_s3.put(f"{data}/{round_}-{number}.png", b"x")
        came: list[claims.Taken] = []
        barrier = threading.Barrier(2)

        def claim(run: str, came=came, barrier=barrier) -> None:
            barrier.wait()
            came.append(claims.take(data, at, run, 0, ABANDONED))

        threads = [threading.Thread(target=claim, args=(f"run {round_} {side}",)) for side in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(name for taken in came for name in objects(taken)) == [f"{round_}-{n}.png" for n in range(5)]


@pytest.mark.services
def test_a_claim_on_objects_is_ingested_from_s3(at_s3, packs):
    at_s3.put_folder(packs, "s3://lines-bucket/packs")
    root = "s3://lines-bucket/packs"
    said = fresh(f"{root}/new/", "s3://lines-bucket/claims/packs/", f"{root}/labelled")
    assert counts(said["data_uri"]) == {"train": 24, "val": 8, "test": 8, "unlabeled": 12}
    assert said["data_uri"].startswith("list+s3://lines-bucket/claims/packs/lists/00000001-")
    local = fresh(str(packs / "new"), "claims", str(packs / "labelled"), "local")
    counts(local["data_uri"], "here")
    assert Artifact(Path("here").absolute()).version == Artifact(Path("lines").absolute()).version


@pytest.mark.services
@pytest.mark.parametrize("changed", ["new/batch-1", "labelled/train"])
def test_an_object_that_is_put_anew_while_a_claim_is_ingested_is_named(at_s3, packs, monkeypatch, changed):
    root = f"s3://lines-bucket/changing/{changed}"
    at_s3.put_folder(packs, root)
    said = fresh(f"{root}/new", f"s3://lines-bucket/claims/{changed}", f"{root}/labelled")
    read = mapping.over

    def meanwhile(*arguments, **named):
        read(*arguments, **named)
        at_s3.put(f"{root}/{changed}.parquet", (packs / "new/batch-2.parquet").read_bytes())

    monkeypatch.setattr(mapping, "over", meanwhile)
    with pytest.raises(
        ValueError, match=f"{changed.split('/')[1]}.parquet in s3://.* was written over while it was read"
    ):
        counts(said["data_uri"])
    assert not Path("lines").exists()


@pytest.mark.services
def test_a_store_that_does_not_answer_is_named(at_s3):
    with pytest.raises(ValueError, match="s3://no-such-bucket/claims/clock: cannot be written"):
        fresh("s3://lines-bucket/x", "s3://no-such-bucket/claims")
