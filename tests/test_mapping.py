"""One function over many shards: inline, in processes and as Ray tasks."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nodes
import parts
import pytest

from maskocr_core.data import tombstones
from maskocr_core.services import mapping

WAYS = ["inline", "processes", pytest.param("ray", marks=pytest.mark.cluster)]


@pytest.fixture(autouse=True)
def two_at_a_time(monkeypatch):
    monkeypatch.setenv("MASKOCR_JOBS", "2")
    monkeypatch.setenv("PYTHONPATH", nodes.PYTHONPATH)
    for name in ("MASKOCR_MAP", "MASKOCR_TOMBSTONES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def cluster():
    with nodes.one_node() as address:
        yield address


@pytest.fixture
def choose(monkeypatch, request):
    """Choose the way: with Ray, on a cluster that is there already."""

    def chosen(way: str) -> None:
        monkeypatch.setenv("MASKOCR_MAP", way)
        if way == "ray":
            monkeypatch.setenv("RAY_ADDRESS", request.getfixturevalue("cluster"))

    return chosen


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.cluster
def test_inline_processes_and_ray_tasks_give_the_same_bytes(tmp_path, monkeypatch):
    names = [str(number) for number in range(5)]
    made = {}
    for way in mapping.WAYS:
        monkeypatch.setenv("MASKOCR_MAP", way)
        results = mapping.over(parts.blurred, {name: (name, tmp_path / "log") for name in names}, tmp_path / way)
        assert list(results) == names
        made[way] = results, contents(tmp_path / way)
    assert made["inline"] == made["processes"] == made["ray"]
    assert len(made["inline"][1]) == 15
    processes = {path.read_text() for path in (tmp_path / "log").iterdir()}
    assert str(os.getpid()) in processes and len(processes) >= 3


@pytest.mark.parametrize("way", WAYS)
def test_what_the_work_refuses_is_said_in_its_own_words_and_what_was_finished_is_kept(
    tmp_path, monkeypatch, choose, way
):
    choose(way)
    monkeypatch.setenv("MASKOCR_JOBS", "1")
    calls = {name: (name, tmp_path / "log") for name in ("a", "b", "bad", "c")}
    with pytest.raises(ValueError, match="^row 7 of bad.parquet holds no image: take it out$"):
        mapping.over(parts.refusing, calls, tmp_path / "parts")
    finished = [path.parent.name for path in tmp_path.glob("parts/*/result.json")]
    assert way == "ray" or finished  # Ray began all four at once
    del calls["bad"]
    assert list(mapping.over(parts.refusing, calls, tmp_path / "parts")) == ["a", "b", "c"]
    assert all(parts.begun(tmp_path / "log", name) == 1 for name in finished)
    assert not list((tmp_path / "parts").glob(".*"))


@pytest.mark.parametrize("way", WAYS[1:])
def test_a_killed_worker_costs_only_its_part(tmp_path, choose, way):
    choose(way)
    calls = {name: (name, tmp_path / "log", 2) for name in ("a", "deadly", "b", "c")}
    results = mapping.over(parts.deadly, calls, tmp_path / "parts")
    assert results == {name: {"name": name} for name in calls}
    assert {name: parts.begun(tmp_path / "log", name) for name in calls} == {"a": 1, "deadly": 3, "b": 1, "c": 1}
    assert (tmp_path / "parts/deadly/half").read_text() == "deadly"


@pytest.mark.parametrize("way", WAYS[1:])
def test_a_part_that_kills_every_worker_is_named_and_the_others_are_kept(tmp_path, monkeypatch, choose, way):
    choose(way)
    monkeypatch.setattr(mapping, "MAX_LOST", 1)
    calls = {name: (name, tmp_path / "log", 99) for name in ("a", "deadly", "b", "c")}
    message = (
        "^deadly cost 2 workers their lives: too little memory" if way == "processes" else "^a worker died 2 times"
    )
    with pytest.raises(RuntimeError, match=message):
        mapping.over(parts.deadly, calls, tmp_path / "parts")
    assert parts.begun(tmp_path / "log", "deadly") == 2
    assert (tmp_path / "parts/a/result.json").is_file() and not (tmp_path / "parts/deadly").exists()
    seen = []
    mapping.over(parts.deadly, {"a": ()}, tmp_path / "parts", say=lambda *said: seen.append(said))
    assert seen == [("a", {"name": "a"})] and parts.begun(tmp_path / "log", "a") == 1


@pytest.mark.parametrize("way", WAYS)
def test_every_library_has_one_thread_in_a_worker(tmp_path, choose, way):
    choose(way)
    counts = mapping.over(parts.threads, {"one": (), "other": ()}, tmp_path)["one"]
    assert len(counts) >= 4 and set(counts.values()) == {1}


def test_inline_work_leaves_the_threads_of_the_process_as_they_were(tmp_path):
    code = (
        "import os, cv2, numpy, torch, parts; from pathlib import Path; from maskocr_core.services import mapping\n"
        "def count(): return cv2.getNumThreads(), torch.get_num_threads()\n"
        "cv2.setNumThreads(2); torch.set_num_threads(2); before = count()\n"
        f"inside = mapping.over(parts.threads, {{'only': ()}}, Path({str(tmp_path)!r}))['only']\n"
        "print(before == count() == (2, 2), inside['torch'], inside['cv2'])"
    )
    environment = os.environ | {"MASKOCR_MAP": "inline"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "1", "1"]


def test_a_killed_caller_takes_its_workers_along_and_the_next_one_goes_on(tmp_path, choose):
    choose("processes")
    names = [f"n{number}" for number in range(8)]
    code = (
        "import parts; from pathlib import Path; from maskocr_core.services import mapping\n"
        f"root = Path({str(tmp_path)!r})\n"
        f"mapping.over(parts.slow, {{n: (n, root / 'log', 0.6) for n in {names!r}}}, root / 'parts')"
    )
    caller = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("parts/*/result.json"))) < 2:
        assert caller.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    workers = {int(path.read_text()) for path in (tmp_path / "log").iterdir()}
    while any(_lives(worker) for worker in workers):
        assert time.monotonic() < deadline, "workers outlive their caller"
        time.sleep(0.02)
    finished = {path.parent.name for path in tmp_path.glob("parts/*/result.json")}
    assert 2 <= len(finished) < len(names)
    results = mapping.over(parts.slow, {name: (name, tmp_path / "log", 0.0) for name in names}, tmp_path / "parts")
    assert list(results) == names
    assert all(parts.begun(tmp_path / "log", name) == 1 for name in finished)
    assert not list(tmp_path.glob("parts/.*"))


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_part_that_another_worker_finished_meanwhile_is_taken_as_it_is(tmp_path):
    def racing(part: Path) -> dict:
        rival = tmp_path / "parts/only"
        rival.mkdir()
        (rival / mapping.RESULT).write_text(json.dumps({"by": "rival"}))
        return {"by": "this one"}

    assert mapping.over(racing, {"only": ()}, tmp_path / "parts") == {"only": {"by": "rival"}}
    assert not list(tmp_path.glob("parts/.*"))


def test_a_resumed_result_is_what_the_first_caller_got(tmp_path):
    def pairs(part: Path) -> dict:
        return {"pair": (1, 2.5), "none": None}

    first = mapping.over(pairs, {"only": ()}, tmp_path)
    assert first == mapping.over(pairs, {"only": ()}, tmp_path) == {"only": {"pair": [1, 2.5], "none": None}}


def test_without_calls_nothing_is_started(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # nobody listens there
    assert mapping.over(parts.slow, {}, tmp_path / "parts") == {}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MASKOCR_MAP", "threads", "MASKOCR_MAP=threads is none of inline, processes, ray"),
        ("MASKOCR_JOBS", "0", "MASKOCR_JOBS=0 is no number of jobs: give 1 or more"),
        ("MASKOCR_JOBS", "many", "MASKOCR_JOBS=many is no number of jobs"),
    ],
)
def test_a_way_or_a_number_that_is_none_is_refused(tmp_path, monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        mapping.over(parts.slow, {}, tmp_path)


def test_a_few_parts_are_not_worth_processes_and_more_are(monkeypatch):
    monkeypatch.delenv("MASKOCR_JOBS")
    assert mapping._way(mapping._jobs(3)) == "inline"
    assert mapping._jobs(1000) == len(os.sched_getaffinity(0))
    assert mapping._way(2) == "processes"
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert mapping._way(1) == "ray"


@pytest.mark.cluster
def test_ray_workers_that_share_no_folder_send_what_is_small(tmp_path, monkeypatch, choose):
    calls = {name: (name, tmp_path / "log", 0.0) for name in ("a", "b")}
    choose("inline")
    mapping.over(parts.slow, calls, tmp_path / "inline")
    choose("ray")
    monkeypatch.setenv("MASKOCR_STORE", "s3://store/lines")  # nothing large enough to go there is made
    seen = []
    mapping.over(parts.slow, calls, tmp_path / "ray", say=lambda name, result: seen.append(name))
    assert contents(tmp_path / "ray") == contents(tmp_path / "inline") and sorted(seen) == ["a", "b"]


@pytest.mark.parametrize("way", WAYS[1:])
def test_workers_look_for_what_is_forgotten_where_their_caller_does(tmp_path, monkeypatch, choose, way):
    choose(way)
    monkeypatch.setenv("MASKOCR_WORK", "relative/stages")
    found = mapping.over(parts.tombstones_of, {"one": (), "other": ()}, tmp_path / "parts")["one"]
    assert found["location"] == tombstones.location() == str(tmp_path / "relative/tombstones.json")
    assert found["process"] != os.getpid()


def test_a_cluster_that_does_not_answer_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ValueError, match="RAY_ADDRESS=127.0.0.1:1 does not answer .*: start the cluster, or unset"):
        mapping.over(parts.slow, {"a": ("a", tmp_path, 0.0)}, tmp_path / "parts")


def test_a_list_of_tombstones_that_other_nodes_do_not_see_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKOCR_MAP", "ray")
    monkeypatch.setenv("MASKOCR_STORE", "s3://store/lines")
    monkeypatch.setenv("MASKOCR_TOMBSTONES", str(tmp_path / "tombstones.json"))
    with pytest.raises(
        ValueError, match="tombstones.json is a file here.*would read what is forgotten: put it into that store"
    ):
        mapping.over(parts.slow, {"a": ("a", tmp_path, 0.0)}, tmp_path / "parts")
