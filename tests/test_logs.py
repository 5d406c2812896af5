"""What a stage prints is kept on its run in MLflow, also where it fails or is killed."""

import subprocess
import sys
import time

import pytest

from maskocr_core.config import Registry
from maskocr_core.services import logged, logs, tracking


@pytest.fixture(autouse=True)
def in_a_run(monkeypatch):
    monkeypatch.setenv("MASKOCR_RUN", "one")


def log(name="ingest"):
    return logged.read(f"runs:/{tracking.run_id(Registry())}", f"logs/{name}.log").decode()


def test_both_streams_are_kept_and_shown(capsys):
    with logs.kept(Registry(), "ingest"):
        print("3 lines – ſie")
        print("a warning", file=sys.stderr)
    assert log() == "3 lines – ſie\na warning\n"
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("3 lines – ſie\n", "a warning\n")
    print("later")
    assert "later" not in log()


def test_who_holds_on_to_a_stream_may_write_to_it_afterwards(capsys):
    """As handlers of `logging` do that were made meanwhile."""
    with logs.kept(Registry(), "ingest"):
        held = sys.stdout
    held.write("later\n")
    assert capsys.readouterr().out == "later\n" and not held.closed
    assert "logs/ingest.log" not in logged.files(f"runs:/{tracking.run_id(Registry())}")  # nothing was said in time


def test_an_error_ends_the_log_with_its_traceback_and_goes_on():
    with pytest.raises(ValueError, match="no lines"), logs.kept(Registry(), "ingest"):
        print("before")
        raise ValueError("no lines at all")
    assert log().startswith("before\nTraceback") and log().endswith("ValueError: no lines at all\n")


def test_what_a_killed_stage_said_is_there(tmp_path):
    program = (
        "import time\nfrom maskocr_core.config import Registry\nfrom maskocr_core.services import logs\n"
        "logs.EVERY_SECONDS = 0.2\nwith logs.kept(Registry(), 'pretrain'):\n    print('step 1', flush=True)\n    time.sleep(60)\n"
    )
    stage = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 50
    while time.monotonic() < deadline:
        time.sleep(0.5)
        if "logs/pretrain.log" in logged.files(f"runs:/{tracking.run_id(Registry())}"):
            break
    stage.kill()
    stage.wait()
    assert log("pretrain") == "step 1\n"


def test_a_tracker_that_is_away_costs_the_log_and_nothing_else(monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with logs.kept(Registry(), "ingest"):
        print("3 lines")
    told = capfd.readouterr()
    assert told.out == "3 lines\n" and told.err.count("is not kept in MLflow") == 1


def test_a_tracker_that_comes_back_gets_the_whole_log(monkeypatch, capfd):
    monkeypatch.setattr(logs, "EVERY_SECONDS", 0.1)
    store, asked = tracking.artifact_store, []

    def away_at_first(uri):
        asked.append(uri)
        if len(asked) < 3:
            raise ConnectionError("nobody is there")
        return store(uri)

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "artifact_store", away_at_first)
        with logs.kept(Registry(), "ingest"):
            print("3 lines")
            deadline = time.monotonic() + 50
            while len(asked) < 3 and time.monotonic() < deadline:
                time.sleep(0.1)
            print("all read")
    assert log() == "3 lines\nall read\n" and capfd.readouterr().err.count("not kept in MLflow for now") == 1


def test_every_stage_of_a_pipeline_run_keeps_its_log_and_pre_training_its_pictures(road):
    """`road` is a run of all stages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{road['root'] / 'mlflow.db'}")
        patch.setenv("MASKOCR_RUN", "road")
        patch.chdir(road["root"])
        home = f"runs:/{tracking.run_id(Registry())}"
        from maskocr_core import stages

        assert {f"logs/{name}.log" for name in stages.NAMES} <= set(logged.files(home))
        assert "masked loss" in logged.read(home, "logs/pretrain.log").decode()
        drawn = {path.name: path.read_bytes() for path in (road["encoder"] / "pictures").glob("step-*.png")}
        assert drawn and drawn == {name: logged.read(home, f"pretrain/{name}") for name in drawn}
