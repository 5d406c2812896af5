"""The command line as a person meets it: help that teaches, one sentence for a mistake, checks before a run."""

import os
import socket
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from kfp_server import Server


def maskocr(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "maskocr_core.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "200"} | environment
    )


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (
            ["ingest", "--recipe", "pilto", "--data-uri", ".", "--lines-out", "o"],
            "unknown recipe 'pilto', did you mean 'pilot'?",
        ),
        (
            ["ingest", "--set", "data.hight=40", "--data-uri", ".", "--lines-out", "o"],
            "unknown field 'data.hight', did you mean 'height'?",
        ),
        (["ingest", "--data-uri", "nowhere", "--lines-out", "o"], "nowhere: no such file or folder"),
        (["pilot", "--data", "nowhere"], "nowhere: no such file or folder"),
        (
            ["pilot", "--data", f"{REPOSITORY}/sample/target", "--transfer", "", "--prices", f"{REPOSITORY}/NOTICE"],
            "NOTICE cannot be read as JSON",
        ),
        (["pilot", "--data", "a\x1b[31mb"], "a[U+001B][31mb: no such file or folder"),
        (["pilot", "--set", "sweep.stps=3"], "unknown field 'sweep.stps', did you mean 'steps'?"),
        (
            ["submit", "nowhere.yaml", "--endpoint", "http://127.0.0.1:9"],
            "nowhere.yaml cannot be read as a compiled pipeline",
        ),
        (["submit", "nowhere.yaml"], "no endpoint: give --endpoint URL or set KFP_ENDPOINT"),
        (["read", "nowhere.png"], "nowhere.png: no such file or folder"),
    ],
)
def test_a_mistake_ends_in_one_sentence_and_code_2(arguments, sentence):
    done = maskocr(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("maskocr: ") and sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_empty_folder_is_said_to_be_empty(tmp_path):
    (tmp_path / "empty").mkdir()
    done = maskocr("ingest", "--data-uri", "empty", "--lines-out", "lines")
    assert "there is no file here; give a folder or s3://bucket/prefix that holds line images" in done.stderr
    assert not (tmp_path / "lines").exists()


def test_a_missing_flag_is_named():
    assert "Missing option '--lines'" in maskocr("pretrain").stderr


@pytest.mark.parametrize("command", ["ingest", "pretrain", "run", "submit", "pilot", "track", "read", "ui", "doctor"])
def test_every_command_teaches_what_it_does(command):
    shown = maskocr(command, "--help").stdout
    assert "Usage: maskocr" in shown or "Usage: python" in shown
    assert len(shown.split()) > 20


def test_the_ui_refuses_a_port_in_use():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        done = maskocr("ui", "--port", str(port))
    assert done.returncode == 2
    assert f"port {port} is in use: choose another with --port" in done.stderr


def test_doctor_says_what_a_run_will_find():
    done = maskocr("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("disk", "memory", "PyTorch", "Ray", "MLflow"):
        assert f"ok    {name}" in done.stdout


def test_doctor_fails_with_the_mend_for_each_thing_that_is_missing():
    done = maskocr(
        "doctor",
        "--endpoint",
        "http://127.0.0.1:9",
        "--data",
        "nowhere",
        RAY_ADDRESS="127.0.0.1:9",
        MLFLOW_TRACKING_URI="http://127.0.0.1:9",
        MASKOCR_STORE="s3://nobucket/x",
        AWS_ENDPOINT_URL="http://127.0.0.1:9",
        AWS_ACCESS_KEY_ID="a",
        AWS_SECRET_ACCESS_KEY="b",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
    )
    assert done.returncode == 1
    failed = {line.split()[1]: line for line in done.stdout.splitlines() if line.strip().startswith("FAIL")}
    assert set(failed) == {"Ray", "MLflow", "store", "data", "KFP"}
    assert "start the cluster, or unset RAY_ADDRESS" in failed["Ray"]
    assert "set MLFLOW_TRACKING_URI" in failed["MLflow"]
    assert "check AWS_ENDPOINT_URL" in failed["store"]
    assert "check the address" in failed["KFP"]


def test_doctor_knows_a_kfp_endpoint_from_a_web_page():
    with Server() as server:
        assert "ok    KFP" in maskocr("doctor", "--endpoint", server.url).stdout
    with Server(page="/") as server:
        assert "not as a KFP API" in maskocr("doctor", "--endpoint", server.url).stdout


@pytest.mark.parametrize("last, code", [("SUCCEEDED", 0), ("FAILED", 1)])
def test_submit_waits_shows_the_tasks_and_ends_as_the_run_does(last, code):
    pipeline = REPOSITORY / "pipelines" / "pretrain_finetune.yaml"
    fails = "pretrain" if code else ""
    with Server(fails=fails, message="no line to train on", pace=4) as server:
        done = maskocr("submit", str(pipeline), "data_uri=s3://archive/lines", "recipe=pilot", "--endpoint", server.url)
    assert done.returncode == code, done.stderr
    assert "task pretrain: " in done.stderr and f"run: {last}" in done.stderr
    if code:
        assert "no line to train on" in done.stderr.splitlines()[-1]
    else:
        assert done.stdout.strip() in server.runs


def test_submit_refuses_a_misspelt_parameter_before_anything_is_sent():
    with Server() as server:
        done = maskocr(
            "submit", str(REPOSITORY / "pipelines" / "pretrain_finetune.yaml"), "data_url=x", "--endpoint", server.url
        )
        assert done.returncode == 2 and "did you mean data_uri?" in done.stderr
        assert not server.requests
