"""Pages in a headless Chromium without a network, and what they ask for."""

import shutil
from pathlib import Path

import pytest

# No process of the browser's own asks either; names other than this machine's do not resolve.
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]


def opened(*pages: Path) -> tuple[list[str], list[str]]:
    """The URLs that these pages ask for when they are opened, pictures inside them left out, and what they say to the console.

    Skips the test where there is no browser.
    """
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser_path:
        pytest.skip("no chromium on this machine")
    asked, said = [], []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=_ARGUMENTS)
        for page in pages:
            tab = browser.new_page()
            tab.on("request", lambda request: asked.append(request.url))
            tab.on("console", lambda message: said.append(message.text))
            tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
            tab.goto(page.resolve().as_uri())
        browser.close()
    return [url for url in asked if not url.startswith("data:")], said
