"""What evaluate says beside the error rates: budgets, money, confidence, old domains, where the errors are, and the gate."""

import html
import json
from pathlib import Path

import packed
import pyarrow as pa
import pytest
import rendered
from conftest import run_stage

from maskocr_core import artifacts, config
from maskocr_core.artifacts import Artifact
from maskocr_core.data import lines as schema
from maskocr_core.data.lines import read_table
from maskocr_core.data.tombstones import digest
from maskocr_core.services import compared, registered
from maskocr_core.training import calibrating, reading
from maskocr_core.training import judged as judged_lines

PRICES = Path(__file__).parents[1] / "sample" / "prices.json"
SWEEP = [
    "pretrain.workers=0",
    "sweep.budgets=[16, 32, 64]",
    "sweep.seeds=[4, 7]",
    'sweep.starts=["scratch", "transfer"]',
    "sweep.replay=0.25",
    "gate.margin=0.02",
    'gate.slices=["length=medium", "contrast=lowest third"]',
]


@pytest.fixture(scope="module")
def judged(road, raw, tmp_path_factory):
    """The road from ingest on once more, with protected lines, three budgets and two seeds, against a champion."""
    root, protected = tmp_path_factory.mktemp("judged"), []
    for source, documents in (("older", 5), ("letters", 2)):
        protected.append(str(tmp_path_factory.mktemp(source)))
        rows = rendered.rows(documents=documents, lines=4, split="test", source=source, seed=21 + documents)
        rendered.parquet(Path(protected[-1]) / "test.parquet", rows)
    settings = config.load("smoke", SWEEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKOCR_WORK", str(root / "stages"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
        patch.setenv("MASKOCR_RUN", "judged")
        patch.setenv("MASKOCR_MAP", "inline")
        patch.chdir(root)
        run_stage("ingest", settings, raw, root, protected_uris=",".join(protected))
        for name in ("validate", "fit"):
            run_stage(name, settings, raw, root)
        artifacts.publish(road["encoder"], root / "encoder")
        run_stage("finetune", settings, raw, root)
        run_stage("evaluate", settings, raw, root, prices_uri=str(PRICES))
        run_stage("register", settings, raw, root)
        first = json.loads((root / "evaluation/summary.json").read_text())
        registered.describe_version(settings.registry, "1", {}, "", "champion")
        run_stage("evaluate", settings, raw, root, prices_uri=str(PRICES))
    return {"root": root, "first": first, "second": json.loads((root / "evaluation/summary.json").read_text())}


def test_protected_lines_are_a_split_of_their_own_that_nothing_is_trained_on(judged):
    lines = Artifact(judged["root"] / "lines")
    assert lines.metrics["protected_test"] == 5 * 4 + 2 * 4
    saw = json.loads((judged["root"] / "recognizers/transfer-4/saw.json").read_text())["documents"]
    owned = read_table(lines, "documents.parquet").to_pylist()
    old = {digest(row["source"], row["document_id"]) for row in owned if row["source"] in ("older", "letters")}
    assert len(old) == 7 and not old & set(saw)


def test_every_budget_has_a_row_with_each_seed_and_the_largest_stands_for_the_start(judged):
    rows = judged["first"]["efficiency"]
    assert [(row["start"], row["budget"]) for row in rows] == [
        (start, budget) for start in ("scratch", "transfer") for budget in (16, 32, 64)
    ]
    assert all(len(row["by_seed"]) == 2 for row in rows)
    for start in judged["first"]["starts"]:
        last = next(row for row in rows if (row["start"], row["budget"]) == (start["start"], 64))
        assert start["cer"]["all"] == last["cer"] and start["budget"] == 64
    assert {row["curve"]["budgets"] for row in judged["first"]["curves"]} == {3}


def test_with_prices_there_is_a_verdict_on_the_investment(judged):
    (row,) = judged["first"]["returns"]
    assert row["start"] == "transfer" and row["verdict"] in ("go", "no-go", "not yet") and row["reason"]


def test_of_several_seeds_the_gate_judges_the_one_that_is_registered(judged):
    root, summary = judged["root"], judged["second"]
    runs = [run for run in Artifact(root / "recognizers").read_json("runs.json")["runs"] if run["chosen"]]
    mine = {run["seed"]: run["validation_cer"]["all"] for run in runs if run["name"] == summary["candidate"]}
    assert summary["candidate_seed"] == min(mine, key=lambda seed: mine[seed])
    table = read_table(Artifact(root / "evaluation"), "predictions.parquet").to_pandas()
    place = list(mine).index(summary["candidate_seed"])
    read = table[(table["start"] == summary["candidate"]) & (table["repetition"] == place)]
    champion = table[table["start"] == "champion"]
    cer = read["edits"].sum() / read["characters"].sum()
    assert summary["candidate_cer"]["value"] == pytest.approx(cer)
    # It is the champion by now, so that nothing differs from it; the mean of the seeds would.
    assert summary["verdict"]["lines"][0]["value"] == 0 and read["read"].tolist() == champion["read"].tolist()


def test_only_where_documents_are_torn_is_confidence_fitted_on_known_ones(judged, tmp_path):
    assert judged["first"]["calibration"]["known_documents"] == 0
    content = packed.short_lines(24, seed=0)
    lines, selection = packed.pack(tmp_path, {"train": content[:16], "val": content[16:]})
    table = read_table(Artifact(lines), "val/part-00000.parquet")
    names = pa.array(["train/document-0"] * 5 + ["of its own"] * 3)
    schema.write(
        table.set_column(table.schema.get_field_index("document_id"), table.schema.field("document_id"), names),
        lines / "val/part-00000.parquet",
    )
    artifacts.finish(lines, kind="lines", config={}, metrics={})
    artifacts.finish(selection, kind="selection", config={}, metrics={})
    inputs = judged_lines.Inputs(Artifact(lines), Artifact(lines), Artifact(selection), tmp_path, None)
    assert judged_lines._known(inputs) == 1


def test_old_domains_are_read_before_and_after(judged):
    rows = {(row["set"], row["start"]): row for row in judged["first"]["forgetting"]}
    names = ("older", "letters", "other (transfer)")
    assert set(rows) == {(name, start) for name in names for start in ("scratch", "transfer")}
    assert rows["other (transfer)", "scratch"]["before"] is None
    row = rows["other (transfer)", "transfer"]
    change = row["after"]["value"] - row["before"]["value"]
    assert row["difference"]["value"] == pytest.approx(change)


def test_without_a_champion_checks_are_shown_and_nothing_is_compared(judged):
    verdict = judged["first"]["verdict"]
    assert verdict["verdict"] == "first"
    names = [line["name"] for line in verdict["lines"]]
    assert names[0] == "no leak" and "confidence" in names and "expected cost" not in names


def test_against_a_champion_every_check_has_its_line(judged):
    verdict = judged["second"]["verdict"]
    lines = {line["name"]: line for line in verdict["lines"]}
    assert verdict["lines"][0]["reason"].find("the champion") > 0
    assert lines["no leak"]["verdict"] == "holds" and lines["expected cost"]["unit"] == "cost"
    assert lines["older"]["verdict"] in ("holds", "undecided", "broken") and lines["older"]["blocks"]
    assert lines["letters"]["verdict"] == "too small" and not lines["letters"]["blocks"]
    # The candidate is the champion: of the same reading nothing can differ, in a slice as in the whole.
    for name in ("length=medium", "contrast=lowest third"):
        assert lines[name]["verdict"] in ("holds", "too small") and lines[name]["value"] == 0
    assert lines["other (transfer)"]["verdict"] == "too small" and not lines["other (transfer)"]["blocks"]
    assert judged["second"]["costs"]["against"] == "champion"


def test_where_the_errors_are_is_told_by_source_length_document_and_class(judged):
    summary = judged["first"]
    kinds = {part["kind"]: part["rows"] for part in summary["slices"]}
    assert {"source", "length", "document", "contrast", "sharpness"} <= set(kinds)
    assert sum(row["lines"] for row in kinds["document"]) == summary["lines"] == 30
    assert len(kinds["document"]) == summary["documents"]
    assert summary["classes"] and summary["confusions"][0]["times"] >= summary["confusions"][-1]["times"]


def test_the_page_holds_every_part_and_json_has_no_number_that_is_none(judged):
    page = (judged["root"] / "evaluation/report.html").read_text()
    for heading in (
        "How many labels it takes",
        "Is it worth its cost?",
        "How far its confidence can be trusted",
        "What else it must go on reading",
        "What its errors cost",
        "Where its errors are",
    ):
        assert f"<h2>{heading}</h2>" in page
    learnt = reading.pictures(Artifact(judged["root"] / "recognizers"))
    titles = [picture["title"] for picture in learnt]
    assert "The mean ink of the labels that come most often." in titles and any("After" in title for title in titles)
    assert all(f'alt="{picture["title"]}" src="data:image/png;base64,{picture["png"]}"' in page for picture in learnt)
    summary = judged["second"]
    head = page[page.index("<header") : page.index("</header>")]
    assert f"<b>{100 * summary['candidate_cer']['value']:.2f} %</b>" in head
    (worth,) = summary["returns"]
    assert f"Is it worth its cost? transfer: <b>{worth['verdict']}</b>. {worth['reason']}" in html.unescape(head)
    shown = json.loads((judged["root"] / "evaluation/shown.json").read_text())
    assert {row["line_id"] for row in judged["second"]["confusions"]} <= set(shown["summary.json"])


def test_every_kept_recognizer_can_be_read_with(judged):
    folder = judged["root"] / "recognizers"
    kept = sorted(path.name for path in folder.iterdir() if path.is_dir())
    wanted = [
        f"{start}-{seed}{rest}" for start in ("scratch", "transfer") for seed in (4, 7) for rest in ("", "-16", "-32")
    ]
    assert kept == sorted([*wanted, "transfer-base", *(["pretraining"] if (folder / "pretraining").is_dir() else [])])
    assert list(folder.glob("*/all/calibration.json"))


def test_a_tracker_that_is_away_in_the_middle_of_a_sweep_loses_nothing_that_is_finished(
    road, raw, tmp_path, monkeypatch, capsys
):
    settings = config.load("smoke", ["pretrain.workers=0", 'sweep.starts=["scratch"]', "sweep.seeds=[7]"])
    for name in ("lines", "selection", "encoder"):
        artifacts.publish(road[name], tmp_path / name)
    monkeypatch.setenv("MASKOCR_RUN", "away")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ValueError, match="MLflow at http://127.0.0.1:9 does not answer .*start it, or set"):
        run_stage("finetune", settings, raw, tmp_path)
    assert "could not be logged to MLflow" in capsys.readouterr().out
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'back.db'}")
    run_stage("finetune", settings, raw, tmp_path)
    assert "nothing it reads has changed, reused" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("prices_uri", {"version": 1, "currency": "EUR"}, "minutes_per_line is missing"),
        ("costs_uri", {"version": 1, "name": "mine", "classes": {"digit": -1}}, "unit is missing"),
    ],
)
def test_a_file_of_prices_or_costs_with_a_mistake_is_told_before_anything_is_read(
    road, raw, smoke, tmp_path, name, content, sentence
):
    for artifact in ("lines", "validation", "selection", "recognizers"):
        artifacts.publish(road[artifact], tmp_path / artifact)
    (tmp_path / "mine.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"mine.json.*{sentence}"):
        run_stage("evaluate", smoke, raw, tmp_path, **{name: str(tmp_path / "mine.json")})


def test_a_recogniser_that_was_given_is_read_before_it_is_fine_tuned_too(road, raw, tmp_path):
    settings = config.load("smoke", ["pretrain.workers=0", 'sweep.starts=["scratch", "transfer"]'])
    for artifact in ("lines", "validation", "selection", "encoder"):
        artifacts.publish(road[artifact], tmp_path / artifact)
    given = road["recognizers"] / "transfer-base" / "all"
    run_stage("finetune", settings, raw, tmp_path, transfer_uri=str(given))
    run_stage("evaluate", settings, raw, tmp_path)
    summary = json.loads((tmp_path / "evaluation/summary.json").read_text())
    rows = {row["start"]: row for row in summary["forgetting"] if row["set"] == "other (transfer)"}
    earlier = Artifact(road["evaluation"]).read_json("summary.json")["forgetting"]
    known = next(row for row in earlier if (row["set"], row["start"]) == ("other (transfer)", "transfer"))
    assert rows["transfer"]["before"]["value"] == known["before"]["value"] and rows["scratch"]["before"] is None
    assert Artifact(tmp_path / "recognizers").read_json("runs.json")["origins"]["transfer"] == str(given)
    assert any(f"what they cost is in no figure: {given}." in note for note in summary["notes"])
    base = tmp_path / "recognizers/transfer-base"
    assert sorted(path.name for path in (base / "all").iterdir()) == ["recognizer.json", "recognizer.safetensors"]
    saw = json.loads((base / "saw.json").read_text())
    assert saw["documents"] == json.loads((road["recognizers"] / "transfer-base/saw.json").read_text())["documents"]


def test_a_sweep_from_a_given_recogniser_that_was_killed_at_its_end_is_finished_by_the_next(
    road, raw, tmp_path, monkeypatch
):
    settings = config.load("smoke", ["pretrain.workers=0", 'sweep.starts=["transfer"]'])
    for artifact in ("lines", "selection", "encoder"):
        artifacts.publish(road[artifact], tmp_path / artifact)
    given = str(road["recognizers"] / "transfer-base" / "all")

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(calibrating, "calibrate", die)
        with pytest.raises(KeyboardInterrupt):
            run_stage("finetune", settings, raw, tmp_path, transfer_uri=given)
    run_stage("finetune", settings, raw, tmp_path, transfer_uri=given)
    assert (tmp_path / "recognizers/transfer-base/all/recognizer.json").is_file()


@pytest.mark.parametrize("stage", ["ingest", "finetune"])
def test_old_lines_cannot_be_replayed_where_a_recogniser_stands_for_them(road, raw, tmp_path, stage):
    settings = config.load("smoke", ["pretrain.workers=0", "sweep.replay=0.2"])
    for artifact in ("lines", "selection", "encoder"):
        artifacts.publish(road[artifact], tmp_path / artifact)
    given = str(road["recognizers"] / "transfer-base" / "all")
    with pytest.raises(ValueError, match=r"sweep.replay=0.2 draws old lines, .* give its lines as transfer_uri, or"):
        run_stage(stage, settings, raw, tmp_path, transfer_uri=given)


def test_test_lines_of_too_few_documents_decide_nothing_and_say_so_everywhere(road, raw, tmp_path, monkeypatch):
    """Five documents of six that are asked for: through the comparison, the gate, the page and the model card."""
    monkeypatch.setenv("MASKOCR_RUN", "few")
    settings = config.load("smoke", ["pretrain.workers=0", "gate.min_documents=6"])
    for artifact in ("lines", "validation", "selection", "recognizers"):
        artifacts.publish(road[artifact], tmp_path / artifact)
    run_stage("evaluate", settings, raw, tmp_path)
    summary = json.loads((tmp_path / "evaluation/summary.json").read_text())
    assert {row["verdict"] for row in summary["starts"]} == {"baseline", "too few documents"}
    assert all(row["cer"]["all"]["low"] != row["cer"]["all"]["low"] for row in summary["starts"])
    page = (tmp_path / "evaluation/report.html").read_text()
    assert "too few for an interval: label lines of more documents, not more lines of these" in page
    run_stage("register", settings, raw, tmp_path)
    (card,) = (tmp_path / "mlartifacts").rglob("model_card.md")
    assert "(documents too few for an interval)" in card.read_text()
    registered.move_alias(settings.registry, "champion", "1")
    run_stage("evaluate", settings, raw, tmp_path)
    verdict = json.loads((tmp_path / "evaluation/summary.json").read_text())["verdict"]
    assert verdict["verdict"] == "undecided" and "too few for an interval" in verdict["reason"]


def test_a_champion_that_cannot_be_loaded_is_said_in_one_sentence(road, raw, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKOCR_RUN", "broken")
    settings = config.load("smoke", ["pretrain.workers=0"])
    for artifact in ("lines", "validation", "selection", "recognizers", "evaluation"):
        artifacts.publish(road[artifact], tmp_path / artifact)
    run_stage("register", settings, raw, tmp_path)
    registered.move_alias(settings.registry, "champion", "1")
    (weights,) = (tmp_path / "mlartifacts").rglob("recognizer.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(
        ValueError, match=r"the champion, maskocr version 1, cannot be loaded: .*recognizer.safetensors"
    ):
        run_stage("evaluate", settings, raw, tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match="the champion, maskocr version 1, cannot be loaded: .*recognizer.safetensors"):
        run_stage("evaluate", settings, raw, tmp_path)


def test_the_price_file_names_the_cer_that_is_wanted_and_what_can_be_bought(judged, road, raw, tmp_path):
    wanted = json.loads(PRICES.read_text())
    scratch = next(row for row in judged["first"]["curves"] if row["start"] == "scratch")["curve"]
    wanted["target_cer"] = scratch["a"] * 40 ** -scratch["b"]
    (tmp_path / "mine.json").write_text(json.dumps(wanted))
    for artifact in ("lines", "validation", "selection", "recognizers"):
        artifacts.publish(judged["root"] / artifact, tmp_path / artifact)
    run_stage("evaluate", config.load("smoke", SWEEP), raw, tmp_path, prices_uri=str(tmp_path / "mine.json"))
    summary = json.loads((tmp_path / "evaluation/summary.json").read_text())
    (row,) = summary["returns"]
    assert row["break_even"]["saving"]["target_cer"] == pytest.approx(wanted["target_cer"])
    saving = next(row for row in summary["curves"] if row["start"] == "transfer")["saving"]
    assert saving["target_cer"] == pytest.approx(wanted["target_cer"])
    page = (tmp_path / "evaluation/report.html").read_text()
    assert "<li>transfer or example service (6.0 % CER): " in page


def test_a_slice_that_no_test_line_is_of_is_refused_before_anything_is_read(road, raw, tmp_path):
    settings = config.load("smoke", ["pretrain.workers=0", 'gate.slices=["source=register"]'])
    for artifact in ("lines", "validation", "selection", "recognizers"):
        artifacts.publish(road[artifact], tmp_path / artifact)
    with pytest.raises(
        ValueError, match="gate.slices: no test line is of 'source=register'; there are source=rendered"
    ):
        run_stage("evaluate", settings, raw, tmp_path)


def test_test_lines_that_served_often_are_said_to_be_worn():
    assert judged_lines.worn(1, 20) == [] and judged_lines.worn(20, 20) == ["These test lines served for 20 verdicts."]
    (said,) = judged_lines.worn(21, 20)
    assert said.startswith("These test lines served for 21 verdicts, more than 20: choices have begun to fit them.")


def test_each_run_that_was_judged_on_the_same_test_lines_counts_in_any_version_of_the_data(judged, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{judged['root'] / 'mlflow.db'}")
    registry, version = config.load("smoke").registry, judged["first"]["test_version"]
    assert judged["first"]["test_uses"] == 1 and judged["second"]["test_uses"] == 2
    assert "These test lines served for 2 verdicts." in judged["second"]["notes"]
    assert compared.uses_of(registry, version) == 1 and compared.uses_of(registry, "of others") == 0
