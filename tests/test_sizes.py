"""Encoders of several sizes in one comparison: pre-trained side by side, fine-tuned by one rule, the best on validation kept."""

import json
import shutil

import pytest
from conftest import run_stage

from maskocr_core import config
from maskocr_core.artifacts import Artifact
from maskocr_core.training import checkpoint, reading, sweep
from maskocr_core.training.finetuning import Run

OTHER = "48x1x2"
MODEL = "32x2x2"


@pytest.fixture(scope="module")
def sized(road, raw, tmp_path_factory):
    """The end of the road with a second size, on the data of the first."""
    root = tmp_path_factory.mktemp("sized")
    for name in ("lines", "validation", "selection", "codebook"):
        shutil.copytree(road[name], root / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("MASKOCR_WORK", str(root / "stages"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
        patch.setenv("MASKOCR_RUN", "sized")
        chosen = config.load("smoke", ["pretrain.workers=0", f'pretrain.sizes=["{OTHER}"]'])
        for name in ("pretrain", "finetune", "evaluate", "register"):
            run_stage(name, chosen, raw, root)
    return root


def test_each_size_is_pretrained_and_what_it_cost_stands_apart(sized):
    encoder = Artifact(sized / "encoder")
    assert checkpoint.sizes_in(encoder) == [OTHER]
    model = config.load("smoke").model
    for size, depth in (("", 2), (OTHER, 1)):
        loaded = checkpoint.load_encoder(encoder, model.sized(size), config.load("smoke").data)
        assert len(loaded.blocks) == depth
    assert encoder.metrics["cpu_minutes"] > 0 and encoder.metrics[f"cpu_minutes_{OTHER}"] > 0
    costs = Artifact(sized / "recognizers").read_json("runs.json")["pretrain_cpu_minutes"]
    assert costs == {MODEL: encoder.metrics["cpu_minutes"], OTHER: encoder.metrics[f"cpu_minutes_{OTHER}"]}


def test_every_start_is_made_in_every_size_and_the_best_on_validation_stands_for_it(sized):
    runs = Artifact(sized / "recognizers").read_json("runs.json")
    starts = ("scratch", "transfer", "pretrained", "both")
    assert {(run["name"], run["size"]) for run in runs["runs"]} == {(s, z) for s in starts for z in (MODEL, OTHER)}
    for start in starts:
        own = [run for run in runs["runs"] if run["name"] == start]
        chosen = next(run for run in own if run["chosen"])
        assert chosen["validation_cer"]["all"] == min(run["validation_cer"]["all"] for run in own)
        _, facts = checkpoint.load_recognizer(sized / "recognizers" / chosen["kept"] / "all")
        assert f"{facts['model']['width']}x{facts['model']['depth']}x{facts['model']['heads']}" == chosen["size"]
        if start in ("transfer", "both"):
            _, facts = checkpoint.load_recognizer(sized / "recognizers" / f"{start}-base" / "all")
            assert facts["model"]["width"] == int(chosen["size"].split("x")[0])


def test_a_person_sees_the_sizes_in_the_report_and_which_was_kept(sized):
    summary = json.loads((sized / "evaluation/summary.json").read_text())
    rows = {(row["start"], row["size"]): row for row in summary["sizes"]}
    assert len(rows) == 8
    for start in summary["starts"]:
        assert rows[start["start"], start["size"]]["kept"]
        assert rows[start["start"], start["size"]]["validation_cer"]["value"] == pytest.approx(start["validation_cer"])
    assert rows["scratch", OTHER]["encoder_parameters"] != rows["scratch", MODEL]["encoder_parameters"]
    assert rows["scratch", OTHER]["cpu_minutes"]["pretrain"] == 0 < rows["both", OTHER]["cpu_minutes"]["pretrain"]
    page = (sized / "evaluation/report.html").read_text()
    assert "How large an encoder" in page and page.count(OTHER) >= 4
    assert (sized / "registration").is_dir()


def test_without_other_sizes_nothing_is_said_of_them(road):
    assert json.loads((road["evaluation"] / "summary.json").read_text())["sizes"] == []
    assert "How large an encoder" not in (road["evaluation"] / "report.html").read_text()


def result(size, rate, cer, budget=100):
    run = Run("scratch", ("train", "val"), budget, rate, 0, 8, size=size)
    row = {"name": "scratch", "size": size, "learning_rate": rate, "budget": budget, "encoder_parameters": 1}
    return run, row | {"validation_cer": {"all": cer}, "cpu_seconds": 60.0, "chosen": False}


def test_size_and_learning_rate_are_chosen_together_and_anew_for_each_budget():
    grid, results = zip(
        result("", 1e-3, 0.5), result("", 2e-3, 0.3), result(OTHER, 1e-3, 0.2), result(OTHER, 2e-3, 0.4),
        result("", 1e-3, 0.6, 50), result("", 2e-3, 0.5, 50), result(OTHER, 1e-3, 0.9, 50), result(OTHER, 2e-3, 0.8, 50),
    )  # fmt: skip
    chosen = sweep.choose(list(grid), list(results))
    assert {(run.budget, run.size, run.learning_rate) for run in chosen} == {(100, OTHER, 1e-3), (50, "", 2e-3)}
    rows = reading.sizes({"runs": list(results), "transfer": [], "pretrain_cpu_minutes": {}})
    assert [(row["size"], row["validation_cer"]["value"]) for row in rows] == [("", 0.3), (OTHER, 0.2)]


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ('["48x1x5"]', "48x1x5 cannot be: .*not divisible"),
        ('["32x2x2"]', "names a size twice, or that of model itself"),
        ('["48x1x2", "48x1x2"]', "names a size twice"),
        ('["48x1"]', "pattern"),
    ],
)
def test_impossible_sizes_are_refused_with_the_reason(sizes, said):
    with pytest.raises(ValueError, match=said):
        config.load("smoke", [f"pretrain.sizes={sizes}"])
