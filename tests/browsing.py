"""Pages in a headless Chromium without a network, and what they ask for."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# No process of the browser's own asks either; names other than this machine's do not resolve.
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]
# MLflow greets a new browser with an assistant over the page, and with pages for language models.
_NO_GREETING = """
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
localStorage.setItem("mlflow.workflowType_v1", '"machine_learning"');
"""


@contextmanager
def browser() -> Iterator[Any]:
    """A browser of playwright's. Skips the test where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not path:
        pytest.skip("no chromium on this machine")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        yield launched
        launched.close()


@contextmanager
def mlflow_ui(address: str) -> Iterator[Any]:
    """A tab of a common size whose `goto("#/…")` opens a page of MLflow's UI at an address, as somebody has it who knows it."""
    with browser() as launched:
        tab = launched.new_page(base_url=f"{address}/", viewport={"width": 1440, "height": 1000})
        tab.add_init_script(_NO_GREETING)
        yield tab


def opened(*pages: Path) -> tuple[list[str], list[str]]:
    """The URLs that these pages ask for when they are opened, pictures inside them left out, and what they say to the console."""
    asked, said = [], []
    with browser() as launched:
        for page in pages:
            tab = launched.new_page()
            tab.on("request", lambda request: asked.append(request.url))
            tab.on("console", lambda message: said.append(message.text))
            tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
            tab.goto(page.resolve().as_uri())
    return [url for url in asked if not url.startswith("data:")], said
