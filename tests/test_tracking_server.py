"""MLflow as a team has it: a server, PostgreSQL behind it, artifacts in S3, and clients that have keys to neither."""

import json
import os
from urllib.parse import quote

import pandas as pd
import pytest
import servers
from browsing import mlflow_ui
from conftest import evaluated, run_stage

from maskocr_core.artifacts import Artifact
from maskocr_core.config import Registry
from maskocr_core.services import ending, ledger, logged, tracking

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def address(s3, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with (
        servers.postgres(folder) as backend,
        servers.mlflow(folder / "mlflow", backend, "s3://lines-bucket/mlflow", s3.env) as address,
    ):
        yield address


@pytest.fixture(scope="module")
def registered(address, road, raw, smoke, tmp_path_factory):
    """What the road made, registered through the server: (folder of the registration, environment of its client)."""
    root = tmp_path_factory.mktemp("client")
    with pytest.MonkeyPatch.context() as patch:
        environment = {
            "MLFLOW_TRACKING_URI": address,
            "MASKOCR_RUN": "by-server",
            "MASKOCR_LEDGER": str(root / "ledger"),
        }
        for name, value in environment.items():
            patch.setenv(name, value)
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("MASKOCR_WORK", str(root / "stages"))
        run_stage("register", smoke, raw, road["root"], registration_out=root / "registration")
    return root / "registration", environment


@pytest.fixture
def client(registered, monkeypatch):
    for name, value in registered[1].items():
        monkeypatch.setenv(name, value)
    return tracking.connection()


def test_a_version_is_registered_through_the_server_and_reads_what_was_evaluated(client, registered, road):
    import mlflow

    registration = Artifact(registered[0]).read_json("registration.json")
    version = client.get_model_version_by_alias("maskocr", "challenger")
    assert version.version == registration["version"] and version.tags["verdict"] == "first"
    model = mlflow.pyfunc.load_model("models:/maskocr@challenger")
    images, read = evaluated(road, registration["start"])
    assert model.predict(pd.DataFrame({"image": images}))["text"].tolist() == read


def test_the_comparison_is_in_postgresql_and_its_files_are_in_s3(client, registered, s3):
    parent = Artifact(registered[0]).read_json("registration.json")["parent_run"]
    home = f"runs:/{parent}"
    assert {"report.html", "summary.json", "logs/register.log"} <= set(logged.files(home))
    starts = client.search_runs([client.get_run(parent).info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert {run.info.run_name for run in starts} >= {"scratch", "pretrained"}
    keys = set(s3.keys("lines-bucket", "mlflow/"))
    assert any(key.endswith("report.html") for key in keys) and any(key.endswith(".safetensors") for key in keys)


def test_the_verdict_is_in_the_ledger_that_was_named(client):
    (entry,) = ledger.read(ledger.place()).entries
    assert entry.kind == "verdict"


def test_a_run_that_failed_is_closed_through_the_server(client, monkeypatch):
    monkeypatch.setenv("MASKOCR_RUN", "another")
    run = tracking.run_id(Registry())
    ending.ended("smoke", [], "FAILED", "Task pretrain failed.")
    assert client.get_run(run).info.status == "FAILED"


@pytest.mark.browser
def test_in_the_ui_a_person_finds_the_comparison_the_version_with_its_verdict_and_the_report(
    client, registered, address, road
):
    from playwright.sync_api import expect

    registration = Artifact(registered[0]).read_json("registration.json")
    summary = Artifact(road["evaluation"]).read_json("summary.json")
    parent, ids = registration["parent_run"], list(registration["runs"].values())
    experiment = client.get_run(parent).info.experiment_id
    with mlflow_ui(address) as tab:
        tab.goto(f"#/experiments/{experiment}/runs")
        row = tab.get_by_role("row").filter(has=tab.get_by_role("link", name="by-server"))
        row.get_by_role("button").first.click()  # which shows the starts below the run
        for start in registration["runs"]:
            expect(tab.get_by_role("link", name=start, exact=True)).to_be_visible()
        tab.goto(f"#/compare-runs?runs={quote(json.dumps(ids))}&experiments={quote(json.dumps([experiment]))}")
        expect(tab.get_by_role("link", name="cer", exact=True)).to_be_visible()
        for row in summary["starts"]:
            expect(tab.locator("body")).to_contain_text(f"{row['cer']['all']['value']:.3f}")
        tab.goto(f"#/models/maskocr/versions/{registration['version']}")
        expect(tab.get_by_text("@ challenger")).to_be_visible()
        expect(tab.get_by_text("There is no champion to compare").first).to_be_visible()
        for line in summary["verdict"]["lines"]:
            expect(tab.locator("body")).to_contain_text(f"{line['name']}: {line['verdict']}")
        tab.goto(f"#/experiments/{experiment}/runs/{parent}/artifacts")
        tab.get_by_text("report.html", exact=True).click()
        page = tab.frame_locator("iframe.mlflow-html-iframe")
        expect(page.get_by_role("heading", name="Verdict: first")).to_be_visible()
        tab.get_by_text("report.png", exact=True).click()
        expect(tab.get_by_role("img", name="report.png").or_(tab.locator("img[src*=blob]")).first).to_be_visible()
