"""What may go of the work on this disk, and what never does."""

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import run_stage

from maskocr_core import artifacts
from maskocr_core.cleaning import work as cleaning

DAY = 24 * 3600.0
KEY = "0123456789abcdef01234567"


@pytest.fixture
def work(tmp_path):
    return tmp_path / "stages"  # MASKOCR_WORK of every test


@pytest.fixture
def pipelines(tmp_path):
    return tmp_path / "work" / "pipelines"


def fill(folder: Path, size: int = 1000, name: str = "weights.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(os.urandom(size))
    return folder


def home(work: Path, stage: str = "quantize", key: str = KEY, output: str = "codebook_out", size: int = 1000) -> Path:
    """The home of a finished stage, as `@stage` leaves it."""
    place = work / stage / key
    artifacts.finish(fill(place / output, size), kind="codebook", config={}, metrics={})
    (place / ".lock").touch()
    return place


def age(folder: Path, days: float) -> Path:
    """Make everything in a folder look untouched for so long."""
    then = time.time() - days * DAY
    for place, folders, files in os.walk(folder, topdown=False):
        for name in (*files, *folders):
            os.utime(Path(place, name), (then, then), follow_symlinks=False)
        os.utime(place, (then, then))
    return folder


def files_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def going(work, pipelines, **rule):
    return {path: entry for entry in cleaning.look(work, pipelines, **rule) if not entry.kept for path in entry.paths}


def reasons(work, pipelines, **rule):
    return {entry.folder: entry.why for entry in cleaning.look(work, pipelines, **rule) if entry.kept}


def test_a_finished_output_goes_once_it_is_published_nowhere_any_more(work, pipelines, tmp_path):
    place = home(work)
    artifacts.publish(place / "codebook_out", tmp_path / "codebook")
    age(place, 40)
    assert reasons(work, pipelines) == {place: "published"}
    subprocess.run(["rm", "-r", tmp_path / "codebook"], check=True)
    [(path, entry)] = going(work, pipelines).items()
    assert (path, entry.why) == (place, "published nowhere any more, unused for 30 days")
    assert entry.frees == files_of(place)
    assert round(entry.days) == 40


def test_a_stage_that_was_run_is_made_again_after_its_work_went(raw, smoke, work, pipelines, tmp_path):
    before = run_stage("ingest", smoke, raw, tmp_path)
    [place] = (work / "ingest").iterdir()
    subprocess.run(["rm", "-r", tmp_path / "lines"], check=True)
    age(place, 31)
    cleaning.delete(cleaning.look(work, pipelines))
    assert not place.exists()
    assert run_stage("ingest", smoke, raw, tmp_path) == before


def test_work_that_was_reused_lately_counts_as_used(raw, smoke, work, pipelines, tmp_path):
    run_stage("ingest", smoke, raw, tmp_path)
    [place] = (work / "ingest").iterdir()
    age(place, 31)
    run_stage("ingest", smoke, raw, tmp_path)
    subprocess.run(["rm", "-r", tmp_path / "lines"], check=True)
    assert reasons(work, pipelines) == {place: "used within 30 days"}


def test_an_output_whose_last_other_name_goes_with_a_pipeline_goes_too_and_counts_once(work, pipelines):
    place = home(work)
    runs = [pipelines / f"retrain-2026-01-0{day}-03-00-00-000000" for day in (1, 2)]
    for run in runs:
        artifacts.publish(place / "codebook_out", run / "quantize" / "codebook_out")
    for folder in (place, *runs):
        age(folder, 40)
    fill(pipelines / "retrain-2026-02-01-03-00-00-000000" / "ingest")
    found = going(work, pipelines, keep_last=1)
    assert set(found) == {place, *runs}
    assert sum(entry.frees for entry in found.values()) == files_of(place)
    assert [found[run].frees for run in runs] == [0, 0]
    kept = going(work, pipelines, keep_last=2)
    assert len(kept) == 1 and place not in kept


def test_unfinished_work_goes_when_it_is_old(work, pipelines):
    old, young = work / "pretrain" / KEY, work / "pretrain" / KEY[::-1]
    for place in (old, young):
        fill(place / "encoder_out.unfinished")
        fill(place / "scratch" / "checkpoints", 5000)
        (place / ".lock").touch()
    age(old, 31)
    found = going(work, pipelines)
    assert {path: (entry.why, entry.frees) for path, entry in found.items()} == {
        old: ("unfinished, unused for 30 days", 6000)
    }
    assert set(going(work, pipelines, days=40)) == set()


def test_checkpoints_of_what_is_finished_go_at_any_age(work, pipelines, tmp_path):
    place = home(work, "pretrain", output="encoder_out")
    artifacts.publish(place / "encoder_out", tmp_path / "encoder")
    fill(place / "scratch" / "checkpoints", 5000)
    run = fill(work / "runs" / KEY / "checkpoints", 7000).parent
    (run / "result.json").write_text("{}")
    (run / ".lock").touch()
    found = going(work, pipelines)
    assert {path: entry.frees for path, entry in found.items()} == {place / "scratch": 5000, run / "checkpoints": 7000}
    assert cleaning.delete(found.values()) == 12000
    assert (place / "encoder_out" / artifacts.MANIFEST).is_file() and (run / "result.json").is_file()


def test_a_run_of_fine_tuning_goes_when_it_is_old_and_keeps_its_checkpoints_until_it_is_finished(work, pipelines):
    run = fill(work / "runs" / KEY / "checkpoints").parent
    (run / ".lock").touch()
    assert going(work, pipelines) == {}
    assert set(going(work, pipelines, days=0)) == {run}
    (run / "result.json").write_text("{}")
    age(run, 31)
    assert {path: entry.why for path, entry in going(work, pipelines).items()} == {run: "finished, unused for 30 days"}


@pytest.mark.parametrize("stage", ["pretrain", "runs"])
def test_work_that_a_live_process_holds_is_never_touched(work, pipelines, stage):
    place = fill(work / stage / KEY / "scratch").parent
    lock = place / ".lock"
    lock.touch()
    age(place, 100)
    code = "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        other.stdout.readline()
        assert reasons(work, pipelines) == {place: "at work now"}
        assert going(work, pipelines) == {}
        other.communicate("\n")
    assert set(going(work, pipelines)) == {place}


def test_work_that_was_taken_up_since_the_look_is_left_and_said(work, pipelines):
    places = [age(home(work, key=KEY), 40), age(home(work, key=KEY[::-1]), 40)]
    found, said = cleaning.look(work, pipelines), []
    os.utime(places[0] / ".lock")
    with (places[1] / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cleaning.delete(found, said.append) == 0
    assert sorted(said) == sorted(f"{place}: in use by now, kept" for place in places)
    assert all(place.is_dir() for place in places)


def test_looking_changes_nothing_not_even_when_a_thing_was_used(work, pipelines):
    place = age(home(work), 40)
    before = {path: path.stat().st_mtime for path in (place, *place.rglob("*"))}
    cleaning.look(work, pipelines)
    assert {path: path.stat().st_mtime for path in (place, *place.rglob("*"))} == before


def test_what_a_link_leads_to_is_neither_counted_nor_removed(work, pipelines, tmp_path):
    outside = age(fill(tmp_path / "outside" / KEY), 100)
    (work / "quantize").mkdir(parents=True)
    (work / "quantize" / KEY).symlink_to(outside)
    (work / "ingest").symlink_to(outside.parent)
    pipelines.mkdir(parents=True)
    (pipelines / "retrain-2026-01-01-03-00-00-000000").symlink_to(outside)
    fill(pipelines / "retrain-2026-01-02-03-00-00-000000")
    place = work / "pretrain" / KEY
    fill(place / "scratch")
    (place / ".lock").touch()
    (place / "scratch" / "link").symlink_to(outside)
    age(place, 100)
    [entry] = going(work, pipelines, keep_last=1).values()
    cleaning.delete([entry])
    assert entry.folder == place and not place.exists()
    assert (outside / "weights.safetensors").is_file()


def test_only_what_maskocr_lays_out_is_looked_at(work, pipelines):
    for folder in ("journal", "quantize/notes", "models", f"other/{KEY}"):
        age(fill(work / folder), 100)
    age(fill(pipelines / "mine"), 100)
    age(fill(pipelines / "workspace"), 100)
    assert cleaning.look(work, pipelines) == []


def test_the_newest_pipeline_folders_stay_at_any_age(work, pipelines):
    names = [f"pilot-2026010{day}-030000" for day in range(1, 6)]
    for days, name in zip((90, 80, 70, 60, 10), names):
        age(fill(pipelines / name), days)
    assert {path.name for path in going(work, pipelines, keep_last=2)} == set(names[:3])
    assert {path.name for path in going(work, pipelines, keep_last=2, days=75)} == set(names[:2])


def test_a_removal_that_was_interrupted_is_ended_the_next_time(work, pipelines, monkeypatch):
    place = age(home(work), 40)

    def interrupted(path, ignore_errors=False):
        if not ignore_errors:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cleaning.shutil, "rmtree", interrupted)
        cleaning.delete(cleaning.look(work, pipelines))
    assert not place.exists() and files_of(work) > 0
    cleaning.delete(cleaning.look(work, pipelines))
    assert files_of(work) == 0


def test_half_an_erasure_is_not_taken_for_rubbish(work, pipelines, tmp_path):
    place = home(work)
    artifacts.publish(place / "codebook_out", tmp_path / "codebook")
    fill(place / ".codebook_out.forgotten")
    assert going(work, pipelines) == {}


@pytest.mark.parametrize("rule", [{"days": -1}, {"keep_last": 0}])
def test_a_rule_without_sense_is_refused(work, pipelines, rule):
    with pytest.raises(ValueError, match="--older-than counts days from 0, and --keep-last at least 1"):
        cleaning.look(work, pipelines, **rule)


def gc(*arguments):
    command = [sys.executable, "-m", "maskocr_core.cli", "gc", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "220"}
    ).stdout


def test_the_command_lists_and_deletes_only_when_asked(work):
    place = age(home(work, size=2_000_000), 40)
    shown = gc()
    assert f"stages/quantize/{KEY}" in shown and "2.0 MB" in shown
    assert "nothing was deleted; --delete gives back 2.0 MB" in shown and place.is_dir()
    assert "2.0 MB given back" in gc("--delete") and not place.exists()
    assert gc().endswith("nothing to delete\n")
