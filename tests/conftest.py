"""Shared ground of the tests: lines made here, a road travelled once, and what may be skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import rendered
import servers

from maskocr_core import config, stages

REPOSITORY = Path(__file__).parents[1]
PACKS = REPOSITORY.parent / "shared" / "data"

# Training in tests is timed by nothing, but two busy OpenMP pools on two cores would be slow for no reason.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MASKOCR_MAP", "inline")  # also for fixtures that live longer than a test


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("realdata") and not PACKS.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"no line packs in {PACKS}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Where the environment says that a machine has everything (REQUIRE=services,cluster,…), a skip for lack of it fails."""
    report = yield
    required = {name for name in os.environ.get("REQUIRE", "").split(",") if name}
    if report.skipped and required & {marker.name for marker in item.iter_markers()}:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and REQUIRE={os.environ['REQUIRE']} forbids it: {call.excinfo.value if call.excinfo else ''}"
    return report


@pytest.fixture(autouse=True)
def own_place(tmp_path, monkeypatch):
    """Every test has a work folder, a tracking database and a current folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASKOCR_WORK", str(tmp_path / "stages"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    chosen = ("RUN", "STORE", "MAP", "JOBS", "TOMBSTONES", "LEDGER", "WHO", "MLFLOW_UI")
    chosen += ("NOTIFY_WEBHOOK", "NOTIFY_COMMAND")
    for name in (*(f"MASKOCR_{word}" for word in chosen), "MLFLOW_RUN_ID", "RAY_ADDRESS", "KFP_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    # A process a core for every few shards costs more than it saves here; tests of the ways choose for themselves.
    monkeypatch.setenv("MASKOCR_MAP", "inline")


@pytest.fixture(scope="module")
def s3(tmp_path_factory) -> Iterator[servers.S3]:
    """A real S3 server with two buckets."""
    with servers.seaweed(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def at_s3(s3, monkeypatch) -> servers.S3:
    """The server, and an environment that leads to it."""
    servers.lead(monkeypatch, s3.env)
    return s3


@pytest.fixture(scope="session")
def raw(tmp_path_factory) -> Path:
    """Folders `target` (train, val, test and two unlabelled sources, one of them noise) and `transfer`, as Parquet packs."""
    import numpy as np

    root = tmp_path_factory.mktemp("raw")
    rendered.parquet(
        root / "target/train.parquet", rendered.rows(documents=20, lines=16, split="train", font="serif", seed=1)
    )
    rendered.parquet(
        root / "target/val.parquet", rendered.rows(documents=3, lines=8, split="val", font="serif", seed=2)
    )
    rendered.parquet(
        root / "target/test.parquet", rendered.rows(documents=5, lines=6, split="test", font="serif", seed=3)
    )
    rendered.parquet(
        root / "target/unlabeled.parquet", rendered.rows(documents=8, lines=16, split="unlabeled", font="serif", seed=4)
    )
    noise = rendered.rows(documents=5, lines=10, split="unlabeled", source="noise", seed=5)
    random = np.random.default_rng(0)
    for row in noise:
        row["image"] = rendered.png(random.integers(0, 255, (row["height"], row["width"]), dtype=np.uint8))
    rendered.parquet(root / "target/unlabeled-noise.parquet", noise)
    rendered.parquet(
        root / "transfer/train.parquet", rendered.rows(documents=6, lines=10, split="train", source="other", seed=6)
    )
    rendered.parquet(
        root / "transfer/val.parquet", rendered.rows(documents=2, lines=8, split="val", source="other", seed=7)
    )
    return root


@pytest.fixture(scope="session")
def smoke() -> config.Config:
    """The smoke recipe inside this process: every stage for real, in seconds."""
    return config.load("smoke", ["pretrain.workers=0"])


@pytest.fixture(scope="session")
def road(raw, smoke, tmp_path_factory) -> dict[str, Path]:
    """The artifacts of one road through all stages, by output name; made once, read by many tests."""
    root = tmp_path_factory.mktemp("road")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("MASKOCR_WORK", str(root / "stages"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
        patch.setenv("MASKOCR_RUN", "road")
        patch.setenv("MASKOCR_MAP", "inline")
        for name in stages.NAMES:
            run_stage(name, smoke, raw, root)
    return {path.name: path for path in root.iterdir() if path.is_dir()} | {"root": root}


def run_stage(name: str, configuration: config.Config, raw: Path, root: Path, **changes) -> dict[str, float]:
    """Run a stage whose inputs lie under their own names in `root`, and put its outputs there."""
    import inspect

    given = {"data_uri": raw / "target", "transfer_uri": raw / "transfer", "encoder_uri": "", "protected_uris": ""}
    given |= {"costs_uri": "", "prices_uri": "", "codebook_uri": "", "start_uri": ""}
    arguments = {}
    for parameter in list(inspect.signature(stages.get(name)).parameters)[1:]:
        if parameter in given:
            arguments[parameter] = str(given[parameter])
        else:
            arguments[parameter] = root / parameter.removesuffix("_out")
    return stages.get(name)(configuration, **(arguments | changes))


def evaluated(road: dict[str, Path], start: str) -> tuple[list[bytes], list[str]]:
    """Images of the test lines, and what `start` was found to read of them when it was evaluated."""
    from maskocr_core.artifacts import Artifact
    from maskocr_core.data import lines

    predictions = lines.read_table(Artifact(road["evaluation"]), "predictions.parquet").to_pandas()
    wanted = predictions[predictions["start"] == start]
    return lines.images_of(Artifact(road["lines"]), "test", wanted["line_id"].tolist()), wanted["read"].tolist()
