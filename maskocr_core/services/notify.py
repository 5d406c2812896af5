"""Telling the people who decide that there is something to decide: a webhook, a command such as `mail`, or both."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import urllib.request
from http.client import HTTPException
from urllib.parse import quote, urlsplit, urlunsplit

from maskocr_core.services import tracking

SECONDS = {"webhook": 10, "command": 30}  # a stage waits no longer than that for either


def new_challenger(model: str, version: str, verdict: str, reason: str) -> None:
    """Tell who is to be told of a new challenger, by MASKOCR_NOTIFY_WEBHOOK and MASKOCR_NOTIFY_COMMAND.

    verdict, reason: the gate's. The webhook gets JSON with model, version, verdict, reason, link and all of it as
    `text` (which chat servers show); the command gets the text on its standard input. What goes wrong is said on standard
    error and raises nothing: a registered model is not lost for a mail that was not sent.
    """
    where = link(model, version)
    text = (
        f"{model} version {version} wants to be champion; the gate says {verdict}: {reason}\n"
        f"Look: {where}\n"
        f'Decide: maskocr promote --version {version} --reason "…"\n'
    )
    _tell(
        {"model": model, "version": version, "verdict": verdict, "reason": reason, "link": where, "text": text},
        "the new challenger",
    )


def failed_run(name: str, state: str, reason: str, page: str) -> None:
    """Tell the same people that a pipeline run failed; raises nothing either.

    page: of the run below MLflow's address; empty if it has none.
    """
    where = _below_ui(page) if page else ""
    text = f"the pipeline run {name} ended as {state}: {reason or 'see the log of its last task'}\n" + (
        f"Look: {where}\n" if where else ""
    )
    _tell({"run": name, "state": state, "reason": reason, "link": where, "text": text}, "a run that failed")


def _tell(facts: dict[str, str], what: str) -> None:
    if url := os.environ.get("MASKOCR_NOTIFY_WEBHOOK"):
        _warn(what, "MASKOCR_NOTIFY_WEBHOOK", _post(url, json.dumps(facts, ensure_ascii=False).encode()))
    if command := os.environ.get("MASKOCR_NOTIFY_COMMAND", "").strip():
        _warn(what, "MASKOCR_NOTIFY_COMMAND", _feed(command, facts["text"]))


def link(model: str, version: str) -> str:
    """Where a person sees the version: below MASKOCR_MLFLOW_UI, else MLflow's own address, else by `maskocr ui`."""
    return _below_ui(f"models/{quote(model, safe='')}/versions/{version}")


def _below_ui(page: str) -> str:
    try:
        parts = urlsplit(os.environ.get("MASKOCR_MLFLOW_UI") or tracking.uri())
    except ValueError:  # no address at all, which is no reason to lose the message
        return "maskocr ui"
    if parts.scheme not in ("http", "https"):
        return "maskocr ui"
    # An address for clients may hold a password, which is not for a chat room.
    ui = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
    return f"{ui}/#/{page}"


def _post(url: str, body: bytes) -> str | None:
    """POST JSON; what went wrong, or None. The path of a webhook's address is its password, so it is not repeated."""
    host = url.partition("//")[2].partition("/")[0].rpartition("@")[2]
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            return "it is no http(s) address"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=SECONDS["webhook"]):
            return None
    except OSError as error:
        return f"{host} did not take the message ({error})"
    except (HTTPException, ValueError) as error:  # whose text may repeat the address
        return f"{host} cannot be asked ({type(error).__name__})"


def _feed(command: str, text: str) -> str | None:
    """Run a command line with the text on its standard input; what went wrong, or None."""
    with tempfile.TemporaryFile() as told:  # a pipe would be waited for as long as a grandchild holds it
        try:
            words = shlex.split(command)
            subprocess.run(
                words,
                input=text.encode(),
                stdout=subprocess.DEVNULL,
                stderr=told,
                timeout=SECONDS["command"],
                check=True,
            )
        except subprocess.TimeoutExpired:
            return f"{words[0]} did not end within {SECONDS['command']} s"
        except subprocess.CalledProcessError as error:
            told.seek(0)
            last = told.read().decode(errors="replace").strip().rpartition("\n")[2]
            return f"{words[0]} ended with code {error.returncode}" + (f" ({last[:200]})" if last else "")
        except (OSError, ValueError) as error:  # no such program; a quotation mark that is not closed
            return f"{command.split()[0]} cannot be run ({error})"
    return None


def _warn(what: str, name: str, failure: str | None) -> None:
    if failure:
        print(f"nobody was told of {what} by {name}: {failure}", file=sys.stderr, flush=True)
