"""The ledger of promotions: what was written stays as it was, or it is noticed; one number has one writer."""

import dataclasses
import json
import multiprocessing
import shutil
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import DEAD_ENDPOINT, lead

from maskocr_core.services import ledger, storage
from maskocr_core.services.ledger import Entry


def entry(version="1", **facts) -> Entry:
    return Entry(
        **{"kind": "promotion", "model": "maskocr", "version": version, "who": "archivist", "reason": "Größe"} | facts
    )


def written(place, count=4):
    """The place, with `count` entries in it."""
    for version in range(1, count + 1):
        ledger.append(str(place), lambda entries, version=version: entry(str(version)))
    return place


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A ledger of four entries, to be copied."""
    return written(tmp_path_factory.mktemp("ledger") / "whole")


def fault_of(place) -> str:
    fault = ledger.read(str(place)).fault
    assert fault and "\n" not in fault
    return fault


def test_entries_come_back_as_they_were_written_in_their_order(whole):
    book = ledger.read(str(whole)).demand_whole()
    assert [(e.number, e.version, e.reason) for e in book.entries] == [(n, str(n), "Größe") for n in (1, 2, 3, 4)]


def test_nothing_written_yet_is_an_empty_ledger_and_makes_no_folder(tmp_path):
    assert ledger.read(str(tmp_path / "none")).entries == () and not (tmp_path / "none").exists()


def test_sha256sum_of_a_file_is_what_the_next_one_calls_previous(whole):
    for number in (1, 2, 3):
        told = subprocess.run(["sha256sum", whole / f"{number:08}.json"], capture_output=True, text=True, check=True)
        following = json.loads((whole / f"{number + 1:08}.json").read_text())
        assert following["previous"] == told.stdout.split()[0]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(1, 4), place=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_any_changed_byte_is_found_and_its_entry_named(whole, tmp_path, number, place, byte):
    changed = shutil.copytree(whole, tmp_path / "changed", dirs_exist_ok=True)
    path = changed / f"{number:08}.json"
    content = bytearray(path.read_bytes())
    before, content[place % len(content)] = content[place % len(content)], byte
    path.write_bytes(content)
    book = ledger.read(str(changed))
    if byte == before:
        assert book.fault is None
    else:
        assert path.name in book.fault and len(book.entries) == number - 1


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_entry_that_is_gone_is_named(whole, tmp_path, number):
    place = shutil.copytree(whole, tmp_path / "ledger")
    (place / f"{number:08}.json").unlink()
    assert f"no {number:08}.json, which was removed" in fault_of(place)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_entry_written_anew_with_its_own_digest_is_named(whole, tmp_path, number):
    """Whoever knows the form can make a valid entry, but not one that the next one follows on."""
    place = shutil.copytree(whole, tmp_path / "ledger")
    real = ledger.read(str(place)).entries[number - 1]
    (place / f"{number:08}.json").unlink()
    forged = dataclasses.replace(real, reason="because I say so")
    assert storage.create(str(place / f"{number:08}.json"), ledger._encoded(dataclasses.asdict(forged)))
    assert f"{number:08}.json was exchanged" in fault_of(place)
    assert len(ledger.read(str(place)).entries) == number - 1


def test_two_entries_exchanged_are_noticed(whole, tmp_path):
    place = shutil.copytree(whole, tmp_path / "ledger")
    (place / "00000002.json").rename(place / "x")
    (place / "00000003.json").rename(place / "00000002.json")
    (place / "x").rename(place / "00000003.json")
    assert "00000002.json was exchanged: it holds entry 3" in fault_of(place)


def test_a_copy_put_at_the_end_is_noticed(whole, tmp_path):
    place = shutil.copytree(whole, tmp_path / "ledger")
    shutil.copy(place / "00000002.json", place / "00000005.json")
    assert "00000005.json was exchanged" in fault_of(place)


def test_a_file_with_a_name_of_its_own_is_no_entry(whole, tmp_path):
    place = shutil.copytree(whole, tmp_path / "ledger")
    shutil.copy(place / "00000002.json", place / "00000002b.json")
    assert "00000002b.json is no entry of the ledger: take it away" in fault_of(place)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b'{"sha256": 1}'])
def test_a_damaged_file_is_one_clear_sentence(whole, tmp_path, content):
    place = shutil.copytree(whole, tmp_path / "ledger")
    (place / "00000003.json").write_bytes(content)
    assert "00000003.json" in fault_of(place) and "bring back the file as it was" in fault_of(place)


def test_an_entry_of_a_newer_maskocr_asks_for_it(tmp_path):
    ledger.append(str(tmp_path), lambda entries: entry(format_version=2))
    assert "format_version 2, not 1: install the maskocr that wrote it" in fault_of(tmp_path)


def test_nothing_is_added_to_a_broken_chain(whole, tmp_path):
    place = shutil.copytree(whole, tmp_path / "ledger")
    (place / "00000002.json").write_text("{}")
    with pytest.raises(ValueError, match="00000002.json"):
        ledger.append(str(place), lambda entries: entry())
    assert len(list(place.glob("*.json"))) == 4


def test_a_slower_writer_decides_again_on_what_the_faster_one_wrote(tmp_path):
    seen = []

    def write(entries):
        seen.append(len(entries))
        if len(seen) == 1:
            ledger.append(str(tmp_path), lambda entries: entry("9"))
        return entry("8")

    assert ledger.append(str(tmp_path), write).number == 2
    assert seen == [0, 1]
    assert [e.version for e in ledger.read(str(tmp_path)).demand_whole().entries] == ["9", "8"]


def test_what_a_writer_refuses_is_not_written(tmp_path):
    def refuse(entries):
        raise ValueError("no")

    with pytest.raises(ValueError, match="^no$"):
        ledger.append(str(tmp_path), refuse)
    assert ledger.append(str(tmp_path), lambda entries: None) is None
    assert ledger.read(str(tmp_path)).entries == ()


def write_many(place, who, count):
    for _ in range(count):
        ledger.append(place, lambda entries: entry(who=who))


def race(place, count):
    """Two processes that each add `count` entries at once; who wrote each entry."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(place, who, count)) for who in ("one", "other")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    return [e.who for e in ledger.read(place).demand_whole().entries]


def test_two_writers_lose_nothing_and_leave_one_chain(tmp_path):
    assert sorted(race(str(tmp_path / "ledger"), 20)) == ["one"] * 20 + ["other"] * 20


@pytest.mark.services
def test_two_writers_in_s3_lose_nothing_and_leave_one_chain(at_s3):
    assert sorted(race("s3://lines-bucket/race", 10)) == ["one"] * 10 + ["other"] * 10


@pytest.mark.services
def test_an_entry_in_s3_that_was_changed_or_removed_is_named(at_s3):
    place = written("s3://lines-bucket/ledger", 3)
    assert [e.number for e in ledger.read(place).demand_whole().entries] == [1, 2, 3]
    content = at_s3.client().get_object(Bucket="lines-bucket", Key="ledger/00000002.json")["Body"].read()
    at_s3.put(f"{place}/00000002.json", content.replace(b'"archivist"', b'"somebody!"'))
    assert f"{place}/00000002.json was changed after it was written" in fault_of(place)
    at_s3.client().delete_object(Bucket="lines-bucket", Key="ledger/00000002.json")
    assert "no 00000002.json, which was removed" in fault_of(place)


@pytest.mark.services
def test_a_number_that_is_taken_in_s3_is_not_overwritten(at_s3):
    uri = f"{written('s3://lines-bucket/taken', 1)}/00000001.json"
    content = at_s3.client().get_object(Bucket="lines-bucket", Key="taken/00000001.json")["Body"].read()
    assert not storage.create(uri, b"another")
    assert storage.create(uri, content), "its own content, sent again since the answer was lost, is no other writer's"
    assert len(ledger.read("s3://lines-bucket/taken").demand_whole().entries) == 1


@pytest.mark.services
def test_an_unreachable_ledger_is_one_sentence_with_the_mend(at_s3, monkeypatch):
    lead(monkeypatch, {"AWS_ENDPOINT_URL": DEAD_ENDPOINT})
    with pytest.raises(ValueError, match="s3://lines-bucket/away.*AWS_ENDPOINT_URL"):
        ledger.append("s3://lines-bucket/away", lambda entries: entry())


def test_the_ledger_lies_where_it_is_put_or_where_everybody_finds_it(tmp_path, monkeypatch):
    assert ledger.place() == str(tmp_path / "ledger"), "beside MLflow's embedded database"
    monkeypatch.setenv("MASKOCR_STORE", "s3://bucket/store/")
    assert ledger.place() == str(tmp_path / "ledger")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert ledger.place() == "s3://bucket/store/ledger"
    monkeypatch.setenv("MASKOCR_LEDGER", "s3://bucket/decisions")
    assert ledger.place() == "s3://bucket/decisions"
    monkeypatch.setenv("MASKOCR_LEDGER", "decisions/")
    assert ledger.place() == str(tmp_path / "decisions")


def test_a_shared_mlflow_wants_a_shared_ledger(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    with pytest.raises(ValueError, match="http://mlflow:5000 is shared.*set MASKOCR_LEDGER"):
        ledger.place()


def test_who_acts_is_the_user_at_the_host_or_who_is_named(monkeypatch):
    assert "@" in ledger.who()
    monkeypatch.setenv("MASKOCR_WHO", "archivist")
    assert ledger.who() == "archivist"


def test_the_ledger_loads_nothing_heavy():
    code = (
        "import maskocr_core.services.ledger, sys; sys.exit(not {'mlflow', 'boto3', 'pyarrow'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
