"""Telling people of a new challenger: by a webhook, by a command, and never at the cost of the stage."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from maskocr_core.services import notify

CHALLENGER = ("maskocr", "7", "promote", "The CER is 2.00 points below that of the champion.")


@pytest.fixture
def webhook(monkeypatch):
    """A real HTTP server; `taken` are the messages it got, `status` is what it answers, `rests` is when it does."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            content = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.taken.append((self.headers["Content-Type"], json.loads(content)))
            self.server.rests.wait(20)
            self.send_response(self.server.status)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.taken, server.status, server.rests = [], 204, threading.Event()
    server.rests.set()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("MASKOCR_NOTIFY_WEBHOOK", f"http://127.0.0.1:{server.server_port}/hooks/secret-token")
    yield server
    server.rests.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_webhook_gets_model_version_verdict_reason_and_link(webhook, monkeypatch, capsys):
    monkeypatch.setenv("MASKOCR_MLFLOW_UI", "https://mlflow.example.org/")
    notify.new_challenger(*CHALLENGER)
    ((kind, message),) = webhook.taken
    assert kind == "application/json"
    text = message.pop("text")
    assert message == {
        "model": "maskocr",
        "version": "7",
        "verdict": "promote",
        "reason": CHALLENGER[3],
        "link": "https://mlflow.example.org/#/models/maskocr/versions/7",
    }
    assert message["link"] in text and "maskocr promote --version 7" in text
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("status", [403, 500])
def test_a_webhook_that_refuses_is_said_without_its_secret(webhook, capsys, status):
    webhook.status = status
    notify.new_challenger(*CHALLENGER)
    told = capsys.readouterr().err
    assert str(status) in told and "MASKOCR_NOTIFY_WEBHOOK" in told and "127.0.0.1" in told
    assert "secret-token" not in told


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:9/secret-token", "http://no-such-host.invalid/secret-token", "file:///secret-token",
     "secret-token", "http://[secret-token", "http://127.0.0.1:port/secret-token", "http://127.0.0.1:9/secret-token \n"],
)  # fmt: skip
def test_a_webhook_that_cannot_be_reached_only_warns(monkeypatch, capsys, url):
    monkeypatch.setenv("MASKOCR_NOTIFY_WEBHOOK", url)
    notify.new_challenger(*CHALLENGER)
    told = capsys.readouterr().err
    assert told.startswith("nobody was told of the new challenger by MASKOCR_NOTIFY_WEBHOOK") and told.count("\n") == 1
    assert "/secret-token" not in told


def test_a_webhook_that_does_not_answer_is_not_waited_for(webhook, monkeypatch, capsys):
    monkeypatch.setitem(notify.SECONDS, "webhook", 0.2)
    webhook.rests.clear()
    notify.new_challenger(*CHALLENGER)
    assert "timed out" in capsys.readouterr().err


def test_a_command_gets_the_message_on_its_standard_input(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MASKOCR_NOTIFY_COMMAND", f"tee '{tmp_path}/a message'")
    notify.new_challenger(*CHALLENGER)
    text = (tmp_path / "a message").read_text()
    assert "maskocr version 7 wants to be champion; the gate says promote" in text
    assert "Look: maskocr ui" in text, "tracking is a file here, which is no address for a browser"
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "command, said",
    [
        ("no-such-mailer --to people", "cannot be run"),
        ("mail 'unclosed", "cannot be run"),
        ("false", "ended with code 1"),
        (f"{sys.executable} -c \"import sys; sys.exit('no route to the mail server')\"", "no route to the mail server"),
    ],
)
def test_a_command_that_fails_only_warns(monkeypatch, capsys, command, said):
    monkeypatch.setenv("MASKOCR_NOTIFY_COMMAND", command)
    notify.new_challenger(*CHALLENGER)
    told = capsys.readouterr().err
    assert said in told and "MASKOCR_NOTIFY_COMMAND" in told and told.count("\n") == 1


def test_a_command_that_hangs_is_not_waited_for(monkeypatch, capsys):
    monkeypatch.setitem(notify.SECONDS, "command", 0.2)
    monkeypatch.setenv("MASKOCR_NOTIFY_COMMAND", 'sh -c "sleep 20 & wait"')
    notify.new_challenger(*CHALLENGER)
    assert "did not end within 0.2 s" in capsys.readouterr().err


def test_without_anybody_to_tell_nothing_is_said(capsys):
    notify.new_challenger(*CHALLENGER)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "uri, ui, link",
    [
        ("http://mlflow:5000", None, "http://mlflow:5000/#/models/a%20b%2Fc/versions/7"),
        ("https://people:secret@mlflow.example.org/at/", None, "https://mlflow.example.org/at/#/models/a%20b%2Fc/versions/7"),
        ("sqlite:///m.db", "https://mlflow.example.org", "https://mlflow.example.org/#/models/a%20b%2Fc/versions/7"),
        ("postgresql://mlflow@db/mlflow", None, "maskocr ui"),
        ("sqlite:///m.db", "http://[broken", "maskocr ui"),
    ],
)  # fmt: skip
def test_the_link_leads_to_the_version_and_shows_no_password(monkeypatch, uri, ui, link):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    if ui:
        monkeypatch.setenv("MASKOCR_MLFLOW_UI", ui)
    assert notify.link("a b/c", "7") == link
