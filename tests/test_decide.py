"""decide: whether what is new is enough, and what becomes of the claim if it is not."""

import importlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskocr_core import artifacts, config, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.config import Retrain
from maskocr_core.data import admitted, claims
from maskocr_core.training import checkpoint, codebooks

decide = importlib.import_module("maskocr_core.stages.decide")
RULE = Retrain(min_lines=1000, drift=0.3, max_age_days=90)

TABLE = {
    "too few, no drift, young": (999, 0.29, 89.0, False),
    "enough lines": (1000, 0.0, 1.0, True),
    "enough drift": (1, 0.3, 1.0, True),
    "an old champion": (1, 0.0, 90.0, True),
    "an old champion and no accepted line": (0, 0.0, 400.0, False),
    "drift and no accepted line": (0, 1.0, 1.0, False),
    "too few where neither drift nor age is known": (999, None, None, False),
    "enough where neither drift nor age is known": (1000, None, None, True),
}


@pytest.mark.parametrize("case", TABLE)
def test_the_rule(case):
    accepted, drift, age, go = TABLE[case]
    found, reason = decide.ruled(RULE, accepted, drift, age)
    assert found is go
    assert reason.startswith("Train again: " if go else "Nothing to do: ") and reason.endswith(".")


@given(
    st.integers(0, 2000),
    st.none() | st.floats(0, 1),
    st.none() | st.floats(0, 400),
    st.integers(0, 500),
    st.floats(0, 1),
)
def test_more_lines_or_more_drift_never_turn_a_go_into_nothing_to_do(accepted, drift, age, more, further):
    go, _ = decide.ruled(RULE, accepted, drift, age)
    assert decide.ruled(RULE, accepted + more, drift, age)[0] >= go
    if drift is not None:
        assert decide.ruled(RULE, accepted, min(1.0, drift + further), age)[0] >= go


def test_the_reason_names_what_was_found_and_what_is_enough():
    _, reason = decide.ruled(RULE, 1204, 0.41, 12.0)
    assert reason == (
        "Train again: 1,204 new lines were accepted, of 1,000 that are enough; "
        "41% of the new lines lie where no labelled line lies, of 30% that are enough."
    )
    _, reason = decide.ruled(RULE, 120, None, None)
    assert reason == (
        "Nothing to do: 120 new lines were accepted, of 1,000 that are enough; drift cannot be told from so few lines; "
        "there is no champion that could be too old."
    )


@pytest.mark.parametrize(
    "wrong",
    [
        "min_lines=0",
        "drift=0",
        "drift=1.5",
        "max_age_days=0",
        "settle_minutes=-1",
        "abandoned_hours=0",
        "keep_perplexity=2",
    ],
)
def test_an_impossible_rule_is_refused(wrong):
    with pytest.raises(ValueError, match=f"retrain.{wrong.partition('=')[0]}"):
        config.load("smoke", [f"retrain.{wrong}"])


def selection(folder: Path, *sources: tuple[int, int, float | None], refused: float = 0.0) -> Artifact:
    """What fit says of sources of (lines, quarantined, share covered)."""
    records = [
        {
            "source": f"source {number}",
            "verdict": "accept",
            "lines": lines,
            "quarantined": quarantined,
            "selected": lines,
            "refused": refused,
            "kid_ratio": 1.0,
            "coverage_interval": None if covered is None else {"value": 1, "low": 1, "high": 1, "all": covered},
        }
        for number, (lines, quarantined, covered) in enumerate(sources)
    ]
    artifacts.write_json(folder / "verdicts.json", records)
    artifacts.write_json(folder / "yardstick.json", {"features": "strokes"})
    return artifacts.finish(folder, kind="selection", config={}, metrics={})


def test_drift_is_the_share_of_lines_that_are_not_covered_over_all_sources(tmp_path):
    drift = decide.drift_of(selection(tmp_path / "s", (100, 0, 0.9), (310, 10, 0.5), (50, 0, None)))
    assert drift["share"] == pytest.approx((100 * 0.1 + 300 * 0.5) / 400)
    assert [source["source"] for source in drift["sources"]] == ["source 0", "source 1", "source 2"]
    assert drift["by"] == "strokes"


def test_drift_is_unknown_where_no_source_could_be_measured(tmp_path):
    assert decide.drift_of(selection(tmp_path / "s", (50, 0, None)))["share"] is None


def test_a_source_of_which_next_to_all_is_refused_is_drift_though_its_coverage_is_not_measured(tmp_path):
    assert decide.drift_of(selection(tmp_path / "s", (50, 0, None), refused=0.9))["share"] == pytest.approx(0.9)


@pytest.fixture
def claimed(tmp_path) -> Path:
    """A claim on one object."""
    (tmp_path / "new").mkdir()
    (tmp_path / "new/a.png").write_bytes(b"x")
    place = {"data_uri": str(tmp_path / "new"), "claims_uri": str(tmp_path / "claims")}
    stages.get("fresh")(config.load("smoke", ["retrain.settle_minutes=0"]), **place, claim_out=tmp_path / "claim")
    return tmp_path / "claim"


def decided(road, claim: Path, *overrides: str) -> dict:
    out = claim.parent / "decision"
    inputs = {"lines": road["lines"], "selection": road["selection"], "claim": claim}
    decide.decide(config.load("smoke", list(overrides)), **inputs, decision_out=out)
    return Artifact(out).read_json("decision.json")


def state(claim: Path) -> tuple[str, str]:
    (found,) = claims.read(str(claim.parent / "claims"))
    return found.state, found.reason


def test_where_there_is_enough_the_claim_is_held(road, claimed):
    said = decided(road, claimed, "retrain.min_lines=100")
    assert said["go"] and said["accepted"] >= 100 and state(claimed)[0] == "claimed"
    begins = stages.said(claimed.parent / "decision", "decision.json", "go", "start_uri", "codebook_uri", "encoder_uri")
    assert begins == (True, "", "", "")


def test_where_there_is_too_little_its_objects_are_given_back_with_the_reason(road, claimed, capsys):
    said = decided(road, claimed, "retrain.min_lines=100000", "retrain.drift=1.0")
    assert not said["go"] and state(claimed) == ("returned", said["reason"])
    assert f"decide: {said['reason']}" in capsys.readouterr().out
    assert decided(road, claimed, "retrain.min_lines=100000", "retrain.drift=1.0")["reason"] == said["reason"]


def test_the_noise_of_the_road_is_drift(road, claimed):
    assert decided(road, claimed)["drift"]["share"] == pytest.approx(50 / 178, abs=0.05)


def test_a_claim_that_was_taken_over_is_not_trained_on(road, claimed, tmp_path):
    claims.take(str(tmp_path / "new"), str(tmp_path / "claims"), "another", 0, -1)
    with pytest.raises(ValueError, match="claim 1 is claimed, by run another"):
        decided(road, claimed, "retrain.min_lines=100")


def test_lines_of_documents_that_were_forgotten_do_not_count(road, claimed, tmp_path, monkeypatch):
    from maskocr_core.data import tombstones

    before = decide.count(Artifact(road["lines"]), Artifact(road["selection"]))
    accepted = admitted.selected(Artifact(road["lines"]), Artifact(road["selection"]), "unlabeled")
    source, document = (accepted[name][0].as_py() for name in ("source", "document_id"))
    monkeypatch.setenv("MASKOCR_TOMBSTONES", str(tmp_path / "tombstones.json"))
    tombstones.add([tombstones.entry("asked", source, document)])
    assert decide.count(Artifact(road["lines"]), Artifact(road["selection"])) < before


def test_the_age_of_the_champion_is_that_of_its_model(monkeypatch):
    from datetime import UTC, datetime

    monkeypatch.setattr(decide, "model_facts", lambda uri: {"utc_time_created": "2026-01-01 12:00:00.123456"})
    monkeypatch.setattr(decide.time, "time", lambda: datetime(2026, 1, 11, 12, tzinfo=UTC).timestamp())
    assert decide._age_days("models:/maskocr/1") == pytest.approx(10, abs=0.01)


CHAMPION = "models:/maskocr/3"
BOOK = config.load("smoke").codebook


def book_of(kind: str, folder) -> None:
    """A codebook of the smoke recipe's shape, of steps that are described so."""
    tensors = {"components": torch.zeros(BOOK.components, 8), "centroids": torch.zeros(BOOK.clusters, BOOK.components)}
    checkpoint.save_tensors(tensors, folder / "codebook.safetensors")
    facts = {"kind": kind} if kind == "encoder" else {"kind": kind, "window": BOOK.window}
    made = {"format_version": codebooks.FORMAT_VERSION, "features": facts}
    artifacts.write_json(folder / "codebook.json", made)
    artifacts.finish(folder, kind="codebook", config={}, metrics={})


@pytest.mark.parametrize(
    "codebook, features, encoder_uri, codebook_kept, labelled_by, said",
    [
        ("", "gradients", "", False, "", f"{CHAMPION} came with no codebook"),
        ("gradients", "gradients", "", True, "", f"codebook and encoder of {CHAMPION} are gone on with"),
        ("gradients", "pixels", "", False, "", f"the codebook of {CHAMPION} is another one (features gr"),
        ("gradients", "encoder", "", False, CHAMPION, f"{CHAMPION} labels the steps of a new codebook"),
        ("encoder", "encoder", "", False, CHAMPION, f"{CHAMPION} labels the steps of a new codebook"),
        (
            "gradients",
            "encoder",
            "other",
            False,
            "other",
            f"the codebook of {CHAMPION} is another one (features gradients there, encoder asked)",
        ),
        ("encoder", "encoder", "other", True, "other", f"codebook and encoder of {CHAMPION} are gone on with"),
    ],
)
def test_training_begins_with_what_is_of_use_of_the_champion_which_labels_where_an_encoder_is_to_and_none_is_given(
    tmp_path, monkeypatch, codebook, features, encoder_uri, codebook_kept, labelled_by, said
):
    book_of(codebook, tmp_path)
    monkeypatch.setattr(decide, "kept", lambda uri, name, into: tmp_path if codebook else None)
    asked = BOOK.model_copy(update={"features": features})
    start, begins = decide.beginning(asked, CHAMPION, encoder_uri, tmp_path)
    codebook_uri = CHAMPION if codebook_kept else ""
    assert start == {"start_uri": CHAMPION, "codebook_uri": codebook_uri, "encoder_uri": labelled_by}
    assert begins.startswith(said)


@pytest.mark.parametrize("field, value", [("window", 24), ("components", 7), ("clusters", 8)])
def test_a_codebook_of_another_shape_than_is_asked_for_is_made_anew(tmp_path, monkeypatch, field, value):
    book_of("gradients", tmp_path)
    monkeypatch.setattr(decide, "kept", lambda uri, name, into: tmp_path)
    start, begins = decide.beginning(BOOK.model_copy(update={field: value}), CHAMPION, "", tmp_path)
    assert start["codebook_uri"] == ""
    assert f"another one ({field} {getattr(BOOK, field)} there, {value} asked): a new one is made" in begins


def test_without_a_champion_all_is_made_anew(tmp_path):
    start, begins = decide.beginning(BOOK.model_copy(update={"features": "encoder"}), "", "a folder", tmp_path)
    assert start == {"start_uri": "", "codebook_uri": "", "encoder_uri": "a folder"}
    assert begins == "there is no champion: codebook and encoder are made anew"
