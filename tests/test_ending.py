"""What the exit handler of a pipeline does: MLflow says how the run ended, and people hear of a failure."""

import json
import shlex
import sys

import pytest

from maskocr_core.config import Registry
from maskocr_core.services import ending, tracking

MESSAGE = "Task pretrain failed."


@pytest.fixture
def heard(tmp_path, monkeypatch):
    """A function that gives what the command for notifications was told, "" if it was not run."""
    path = tmp_path / "told.txt"
    program = f"import sys; open({str(path)!r}, 'w').write(sys.stdin.read())"
    monkeypatch.setenv("MASKOCR_NOTIFY_COMMAND", shlex.join([sys.executable, "-c", program]))
    monkeypatch.setenv("MASKOCR_RUN", "pretrain_finetune-20261127")
    return lambda: path.read_text() if path.is_file() else ""


def run():
    return tracking.connection().get_run(tracking.run_id(Registry()))


def test_a_run_that_failed_is_closed_with_its_reason_and_told(heard, monkeypatch):
    monkeypatch.setenv("MASKOCR_MLFLOW_UI", "https://mlflow.example.org")
    assert run().info.status == "RUNNING"
    ending.ended("smoke", [], "FAILED", MESSAGE)
    assert run().info.status == "FAILED" and run().data.tags["maskocr.ended"] == MESSAGE
    assert "pretrain_finetune-20261127 ended as FAILED: Task pretrain failed." in heard()
    page = f"experiments/{run().info.experiment_id}/runs/{run().info.run_id}"
    assert f"https://mlflow.example.org/#/{page}" in heard()


def test_a_run_that_succeeded_is_closed_and_nobody_is_told(heard):
    run()
    ending.ended("smoke", [], "SUCCEEDED", "")
    assert run().info.status == "FINISHED" and not heard()


def test_what_a_stage_has_closed_stays_as_it_is(heard):
    tracking.finish(Registry())
    ending.ended("smoke", [], "FAILED", MESSAGE)
    assert run().info.status == "FINISHED" and "maskocr.ended" not in run().data.tags
    assert MESSAGE in heard()


def test_a_run_that_failed_before_its_first_stage_makes_no_run_in_mlflow(heard):
    ending.ended("no such recipe", [], "FAILED", MESSAGE)
    assert tracking.connection().search_experiments(filter_string="name = 'maskocr'") == []
    assert MESSAGE in heard() and "Look" not in heard()


def test_the_run_is_looked_for_in_the_experiment_that_the_overrides_name(heard):
    registry = Registry(experiment="letters")
    number = tracking.run_id(registry)
    ending.ended("smoke", ["registry.experiment=letters"], "FAILED", MESSAGE)
    assert tracking.connection().get_run(number).info.status == "FAILED"


def test_a_tracker_that_is_away_is_said_and_people_are_told_all_the_same(heard, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    ending.ended("smoke", [], "FAILED", MESSAGE)
    assert "MLflow could not be told" in capsys.readouterr().out
    assert MESSAGE in heard()


def test_a_webhook_gets_the_facts_one_by_one(monkeypatch):
    from maskocr_core.services import notify

    sent = []
    monkeypatch.setenv("MASKOCR_NOTIFY_WEBHOOK", "https://chat.example.org/x")
    monkeypatch.setattr(notify, "_post", lambda url, body: sent.append(json.loads(body)))
    notify.failed_run("one", "FAILED", MESSAGE, "")
    (facts,) = sent
    assert {name: facts[name] for name in ("run", "state", "reason", "link")} == {
        "run": "one",
        "state": "FAILED",
        "reason": MESSAGE,
        "link": "",
    }
