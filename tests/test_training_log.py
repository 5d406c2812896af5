"""What is heard of a training while it runs: its log, followed, printed, and put on the run in MLflow."""

import json
import time
from pathlib import Path

import pytest

from maskocr_core import artifacts
from maskocr_core.config import Registry
from maskocr_core.services import logged, tracking
from maskocr_core.services.post import PICTURES
from maskocr_core.training import distributed
from maskocr_core.training.log import Follower, TrainingLog

STEPS = 5


def heard(monkeypatch, capsys, away):
    """The steps of the rows that a tracker was asked to take, by attempt; `away` says of an attempt whether it fails."""
    asked = []

    def log_progress(registry, what, rows):
        asked.append([int(row["step"]) for row in rows])
        if away(len(asked)):
            raise ConnectionError("nobody is there")

    monkeypatch.setenv("MASKOCR_RUN", "one")
    monkeypatch.setattr(tracking, "log_progress", log_progress)
    say = distributed._say("pretrain", STEPS, Registry())
    for step in range(1, STEPS + 1):
        say({"step": float(step), "loss": 1.0})
    return asked, capsys.readouterr().out


def test_each_printed_line_says_loss_rate_padding_and_how_long_training_waited(monkeypatch, capsys):
    monkeypatch.delenv("MASKOCR_RUN", raising=False)
    row = {"masked_loss": 4.5, "learning_rate": 5e-4, "padding": 0.04, "data_wait": 0.01, "gradient_norm": 1.0}
    distributed._say("pretrain", 10, Registry())({"step": 10.0, **row})
    said = capsys.readouterr().out
    assert said.startswith("pretrain: 10/10  masked loss 4.5, learning rate 0.0005, padding 0.04, data wait 0.01, in ")
    assert "norm" not in said


def test_each_row_goes_to_the_tracker_as_it_comes(monkeypatch, capsys):
    asked, said = heard(monkeypatch, capsys, lambda attempt: False)
    assert asked == [[1], [2], [3], [4], [5]] and "could not" not in said


def test_a_tracker_that_is_away_is_left_alone_for_a_while_and_gets_every_row_in_the_end(monkeypatch, capsys):
    asked, said = heard(monkeypatch, capsys, lambda attempt: attempt == 1)
    assert asked == [[1], [1, 2, 3, 4, 5]]
    assert said.count("step 1 could not be logged to MLflow (nobody is there)") == 1


def test_a_tracker_that_comes_back_in_the_middle_gets_what_it_missed(monkeypatch, capsys):
    monkeypatch.setattr(distributed, "PATIENCE", 0.0)
    asked, _ = heard(monkeypatch, capsys, lambda attempt: attempt <= 2)
    assert asked == [[1], [1, 2], [1, 2, 3], [4], [5]]


def test_pictures_reach_the_run_as_they_are_drawn_once_each_after_the_list_of_what_they_show(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKOCR_RUN", "one")
    pictures, went, store = tmp_path / PICTURES, [], tracking.artifact_store

    def draw(*names):
        for name in names:
            artifacts.write_bytes(pictures / name, name.encode())
        artifacts.write_json(pictures / "shown.json", {path.name: ["a line"] for path in pictures.glob("*.png")})

    def recorded(uri):
        real = store(uri)
        log = real.log_artifact
        monkeypatch.setattr(real, "log_artifact", lambda path, folder: (went.append(path), log(path, folder)))
        return real

    monkeypatch.setattr(tracking, "artifact_store", recorded)
    say = distributed._say("pretrain small", 3, Registry(), pictures)
    say({"step": 1.0})  # nothing is drawn yet
    draw("step-1.png")
    say({"step": 2.0})
    draw("step-2.png", "step-3.png")
    say({"step": 3.0})
    names = "shown.json step-1.png shown.json step-2.png step-3.png".split()
    assert [Path(path).name for path in went] == names
    home = f"runs:/{tracking.run_id(Registry())}"
    assert {f"pretrain_small/{name}" for name in names} == set(logged.files(home))
    assert logged.read(home, "pretrain_small/step-3.png") == b"step-3.png"


@pytest.fixture
def followed(tmp_path, monkeypatch):
    """A log, the steps that were said of it, and the assertion that these are, or soon will be, certain ones."""
    monkeypatch.setattr(Follower, "EVERY_SECONDS", 0.01)
    log, said = TrainingLog(tmp_path / "log.jsonl"), []

    def assert_said(*steps):
        deadline = time.monotonic() + 10
        while said != list(steps) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert said == list(steps)

    with Follower(log.path, lambda row: said.append(row["step"])):
        yield log, assert_said


def test_a_follower_says_each_row_once_and_a_torn_one_when_it_is_whole(followed):
    log, assert_said = followed
    log.add(1, {"loss": 2.0})
    log.add(2, {"loss": 1.0})
    assert_said(1, 2)
    row = json.dumps({"step": 3, "loss": 0.5})
    for part in (f"\n{row[:9]}", f"{row[9:]}\n"):
        with log.path.open("a") as file:
            file.write(part)
        time.sleep(0.05)
    assert_said(1, 2, 3)


def test_a_follower_goes_on_where_a_resume_put_an_earlier_log_back(followed):
    log, assert_said = followed
    log.add(1, {"loss": 2.0})
    earlier = log.path.read_bytes()
    for step in (2, 3):
        log.add(step, {"loss": 1.0})
    assert_said(1, 2, 3)
    artifacts.write_bytes(log.path, earlier)
    for step in (2, 3, 4):
        log.add(step, {"loss": 0.9})
    assert_said(1, 2, 3, 4)
