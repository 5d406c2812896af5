"""retrain: training goes on from codebook and encoder of the champion, and the whole pipeline under kfp.local."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import packed
import pytest
import rendered
import torch
import yaml
from conftest import REPOSITORY, run_stage

from maskocr_core import artifacts, config, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.config import Registry
from maskocr_core.data import claims
from maskocr_core.services import registered, tracking
from maskocr_core.training import checkpoint, codebooks, saw

PIPELINE = REPOSITORY / "pipelines" / "retrain.yaml"
SMOKE = config.load("smoke", ["pretrain.workers=0"])


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> tuple[Path, Path]:
    """(lines, selection) of a few short lines."""
    return packed.pack(tmp_path_factory.mktemp("packed"), {"unlabeled": packed.short_lines(32, seed=0)})


@pytest.fixture(scope="module")
def made(lines, tmp_path_factory) -> dict[str, Path]:
    """A codebook and an encoder of these lines."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKOCR_WORK", str(root / "stages"))
        patch.setenv("MASKOCR_MAP", "inline")
        quantize(lines, root / "codebook")
        pretrain(lines, root / "codebook", root / "encoder")
    return {"codebook": root / "codebook", "encoder": root / "encoder"}


def quantize(
    lines, out: Path, codebook_uri: str = "", settings: config.Config = SMOKE, encoder_uri: str = ""
) -> dict[str, float]:
    inputs = {"lines": lines[0], "selection": lines[1], "codebook_uri": str(codebook_uri)}
    inputs["encoder_uri"] = str(encoder_uri)
    return stages.get("quantize")(settings, **inputs, codebook_out=out)


def pretrain(
    lines, codebook: Path, out: Path, start_uri: str = "", settings: config.Config = SMOKE
) -> dict[str, float]:
    inputs = {"lines": lines[0], "selection": lines[1], "codebook": codebook, "start_uri": str(start_uri)}
    return stages.get("pretrain")(settings, **inputs, encoder_out=out)


def book_of(folder: Path):
    return codebooks.load(Artifact(folder), SMOKE.data)


# A codebook to begin with


def test_a_codebook_that_suits_the_new_lines_is_kept_to_the_bit(lines, made, tmp_path, capsys):
    more = packed.pack(tmp_path / "more", {"unlabeled": packed.short_lines(32, seed=1)})
    metrics = quantize(more, tmp_path / "codebook", made["codebook"])
    before, after = book_of(made["codebook"]), book_of(tmp_path / "codebook")
    assert metrics["kept"] == 1 and "and is kept" in capsys.readouterr().out
    for name in ("mean", "components", "centroids"):
        assert torch.equal(getattr(before, name), getattr(after, name))
    assert metrics["own_perplexity"] == Artifact(made["codebook"]).metrics["perplexity"] != metrics["perplexity"]


def test_a_codebook_that_the_new_lines_use_too_little_of_is_made_anew(made, tmp_path, capsys):
    blank = packed.pack(tmp_path / "blank", {"unlabeled": packed.short_lines(32, seed=2, alphabet="1", length=(1, 1))})
    picky = config.load("smoke", ["retrain.keep_perplexity=1.0"])
    metrics = quantize(blank, tmp_path / "codebook", made["codebook"], picky)
    assert metrics["kept"] == 0 and metrics["own_perplexity"] == metrics["perplexity"]
    assert "and is not kept (retrain.keep_perplexity=1)" in capsys.readouterr().out
    assert not torch.equal(book_of(made["codebook"]).centroids, book_of(tmp_path / "codebook").centroids)
    fresh = quantize(blank, tmp_path / "fresh", settings=picky)
    spent = {"cpu_minutes"}  # which differs each time
    assert {name: fresh[name] for name in fresh.keys() - spent} == {
        name: metrics[name] for name in metrics.keys() - spent
    }
    assert Artifact(tmp_path / "fresh").version == Artifact(tmp_path / "codebook").version


def test_a_codebook_that_was_kept_is_held_against_the_lines_that_it_was_made_of(lines, made, tmp_path):
    quantize(lines, tmp_path / "second", made["codebook"])
    metrics = quantize(lines, tmp_path / "third", tmp_path / "second")
    assert metrics["own_perplexity"] == Artifact(made["codebook"]).metrics["perplexity"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "codebook.clusters=8",
            r"its codebook is another one \(clusters 16 there, 8 asked\): set codebook.\* to match",
        ),
        ("codebook.features=pixels", r"another one \(features gradients there, pixels asked\)"),
        ("codebook.window=24", r"another one \(window 16 there, 24 asked\)"),
        (
            "data.height=40",
            "the codebook was made of lines 32 px high, these are 40 px: set data.height=32, or run quantize again",
        ),
        ("data.ink=raw", "the codebook was made of levelled-ink lines, these are raw-ink"),
    ],
)
def test_a_codebook_of_another_make_is_refused_with_the_mend(lines, made, tmp_path, override, said):
    with pytest.raises(ValueError, match=said):
        quantize(lines, tmp_path / "out", made["codebook"], config.load("smoke", [override]))


@pytest.mark.parametrize("predict", ["labels", "pixels"])
def test_a_codebook_of_another_height_is_refused_before_training_begins(lines, made, tmp_path, predict):
    high = config.load("smoke", ["pretrain.workers=0", "data.height=40", f"mask.predict={predict}"])
    with pytest.raises(
        ValueError,
        match="the codebook was made of lines 32 px high, these are 40 px: set data.height=32, or run quantize again",
    ):
        pretrain(lines, made["codebook"], tmp_path / "out", settings=high)


# An encoder to begin with


def test_pretraining_goes_on_from_the_given_encoder(lines, made, tmp_path, capsys):
    slow = config.load("smoke", ["pretrain.workers=0", "pretrain.learning_rate=1e-9", "pretrain.weight_decay=0"])
    pretrain(lines, made["codebook"], tmp_path / "on", made["encoder"], slow)
    pretrain(lines, made["codebook"], tmp_path / "anew", settings=slow)
    start, on, anew = (
        checkpoint.load_encoder(Artifact(folder), SMOKE.model, SMOKE.data).state_dict()
        for folder in (made["encoder"], tmp_path / "on", tmp_path / "anew")
    )
    assert all(torch.allclose(start[name], on[name], atol=1e-6) for name in start)
    assert not all(torch.allclose(start[name], anew[name], atol=1e-6) for name in start)
    assert f"pretrain: goes on from the encoder of {made['encoder']}" in capsys.readouterr().out


def test_an_encoder_that_went_on_has_seen_what_its_start_saw(lines, made, tmp_path):
    more = packed.pack(tmp_path / "more", {"unlabeled": packed.short_lines(80, seed=3)})
    pretrain(more, made["codebook"], tmp_path / "on", made["encoder"])
    assert saw.read(made["encoder"]).documents < saw.read(tmp_path / "on").documents
    assert saw.read(tmp_path / "on").complete


def test_an_encoder_has_seen_what_the_model_saw_that_made_its_labels(lines, made, tmp_path):
    """Also by a codebook that is kept; a model that does not say leaves it open."""
    by_encoder = config.load("smoke", ["pretrain.workers=0", "codebook.features=encoder"])
    more = packed.pack(tmp_path / "more", {"unlabeled": packed.short_lines(80, seed=3)})
    quantize(more, tmp_path / "labels", settings=by_encoder, encoder_uri=made["encoder"])
    assert saw.read(tmp_path / "labels") == saw.read(made["encoder"]) != saw.read(made["codebook"]) == saw.Saw()
    quantize(more, tmp_path / "kept", tmp_path / "labels", by_encoder, made["encoder"])
    assert saw.read(tmp_path / "kept") == saw.read(made["encoder"])
    pretrain(more, tmp_path / "labels", tmp_path / "encoder", settings=by_encoder)
    pretrain(more, made["codebook"], tmp_path / "own")
    assert saw.read(tmp_path / "encoder") == saw.read(tmp_path / "own") | saw.read(made["encoder"])
    shutil.copytree(made["encoder"], tmp_path / "silent")
    (tmp_path / "silent" / saw.NAME).unlink()
    quantize(more, tmp_path / "unknown", settings=by_encoder, encoder_uri=tmp_path / "silent")
    assert not saw.read(tmp_path / "unknown").complete


def test_an_encoder_of_another_shape_is_refused_with_the_mend(lines, made, tmp_path):
    wide = config.load("smoke", ["pretrain.workers=0", "model.width=64"])
    with pytest.raises(ValueError, match="has another shape \\(width 32 there, 64 asked\\): set model") as refusal:
        pretrain(lines, made["codebook"], tmp_path / "out", made["encoder"], wide)
    assert "\n" not in str(refusal.value)


def test_another_start_is_other_work(lines, made, tmp_path, capsys):
    pretrain(lines, made["codebook"], tmp_path / "one")
    pretrain(lines, made["codebook"], tmp_path / "two", made["encoder"])
    assert "reused" not in capsys.readouterr().err
    assert Artifact(tmp_path / "one").version != Artifact(tmp_path / "two").version


# What a registered model brings along


def test_a_pipelines_run_keeps_its_codebook_for_those_who_start_from_its_model(road, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{road['root'] / 'mlflow.db'}")
    kept = stages.kept("models:/maskocr/1", "codebook", tmp_path / "kept")
    assert Artifact(kept).version == Artifact(road["codebook"]).version
    assert torch.equal(book_of(kept).centroids, book_of(road["codebook"]).centroids)
    assert stages.kept("models:/maskocr/1", "nothing", tmp_path / "kept") is None
    monkeypatch.setattr(stages, "model_facts", lambda uri: {"run_id": "0" * 32})  # deleted for good
    assert stages.kept("models:/maskocr/1", "codebook", tmp_path / "kept") is None
    with pytest.raises(ValueError, match="has no model 'maskocr' with the alias 'champion'"):
        quantize((road["lines"], road["selection"]), tmp_path / "out", "models:/maskocr@champion")


def test_both_stages_begin_with_a_registered_model(road, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{road['root'] / 'mlflow.db'}")
    lines = (road["lines"], road["selection"])
    assert quantize(lines, tmp_path / "codebook", "models:/maskocr@challenger")["kept"] == 1
    pretrain(lines, tmp_path / "codebook", tmp_path / "encoder", "models:/maskocr@challenger")
    assert saw.read(tmp_path / "encoder").complete


# The pipeline


def compiled(name):
    return list(yaml.safe_load_all((REPOSITORY / "pipelines" / f"{name}.yaml").read_text()))


def tasks_of(spec, component):
    return spec["components"][component]["dag"]["tasks"]


def test_what_is_not_to_be_done_stands_under_a_condition():
    spec, _ = compiled("retrain")
    inside = tasks_of(spec, "comp-exit-handler-1")
    assert set(inside) == {"fresh", "condition-2"}
    inner = tasks_of(spec, "comp-condition-2")
    assert set(inner) == {"ingest", "validate", "fit", "decide", "condition-3"}
    last = tasks_of(spec, "comp-condition-3")
    assert set(last) == {"quantize", "pretrain", "finetune", "evaluate", "register", "conclude"}
    names = [task["taskInfo"]["name"] for tasks in (inside, inner) for task in tasks.values()]
    assert {"something-new", "enough"} <= set(names)


@pytest.mark.parametrize("name", ["pretrain_finetune", "retrain"])
def test_somebody_hears_how_a_pipeline_ended(name):
    spec, _ = compiled(name)
    tasks = spec["root"]["dag"]["tasks"]
    assert set(tasks) == {"exit-handler-1", "finished"}
    last = tasks["finished"]
    assert last["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert last["dependentTasks"] == ["exit-handler-1"]
    assert last["inputs"]["parameters"]["status"] == {"taskFinalStatus": {"producerTask": "exit-handler-1"}}


def test_tasks_of_the_two_pipelines_have_the_same_room_and_settings():
    platforms = []
    for name in ("pretrain_finetune", "retrain"):
        spec, platform = compiled(name)
        kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        executors = spec["deploymentSpec"]["executors"]
        platforms.append({key: (executors[key]["container"]["resources"], kubernetes[key]) for key in executors})
    assert platforms[0].items() <= platforms[1].items()


WITH_A_MODEL = {"fit", "decide", "quantize", "pretrain", "finetune", "evaluate"}


def test_tasks_with_a_model_have_shared_memory_and_nodes_of_their_own_and_each_attempt_an_end():
    spec, platform = compiled("retrain")
    kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert {name.removeprefix("exec-") for name in kubernetes} == WITH_A_MODEL | {
        *("fresh", "ingest", "validate", "register", "conclude", "finished")
    }
    for key, facts in kubernetes.items():
        with_a_model = key.removeprefix("exec-") in WITH_A_MODEL
        assert int(facts["activeDeadlineSeconds"]) >= 3600
        assert [mount["mountPath"] for mount in facts.get("emptyDirMounts", [])] == ["/dev/shm"] * with_a_model
        assert ("nodeSelector" in facts) == ("tolerations" in facts) == with_a_model
        secrets = {secret["secretName"]: secret.get("optional", False) for secret in facts["secretAsEnv"]}
        assert secrets == {"maskocr-s3": False, "maskocr-mlflow-client": True, "maskocr-notify": True}


def test_kfp_may_cache_what_its_inputs_decide_and_nothing_else():
    for name in ("pretrain_finetune", "retrain"):
        spec, _ = compiled(name)
        tasks = [
            task
            for component in spec["components"].values()
            for task in component.get("dag", {}).get("tasks", {}).items()
        ]
        cached = {task for task, facts in tasks if facts.get("cachingOptions", {}).get("enableCache")}
        assert cached == {"validate"}


def test_gpus_are_compiled_into_the_tasks_with_a_model_and_leave_the_pipelines_beside_the_sources_alone(tmp_path):
    from maskocr_pipelines import __main__ as compilation

    (path,) = (path for path in compilation.compile_all(tmp_path, gpus=2) if path.stem == "retrain")
    spec = next(yaml.safe_load_all(path.read_text()))
    executors = spec["deploymentSpec"]["executors"]
    wanted = {
        key.removeprefix("exec-"): executor["container"]["resources"]["accelerator"]["resourceCount"]
        for key, executor in executors.items()
        if "accelerator" in executor["container"]["resources"]
    }
    assert wanted == dict.fromkeys(WITH_A_MODEL, "2")
    before = PIPELINE.read_bytes()
    assert (
        subprocess.run([sys.executable, "-m", "maskocr_pipelines", "--gpus", "1"], capture_output=True).returncode == 2
    )
    assert PIPELINE.read_bytes() == before


@pytest.fixture(scope="module")
def place(road, tmp_path_factory) -> Path:
    """A labelled set, a folder where nothing has arrived yet, and a champion: what the road registered."""
    root = tmp_path_factory.mktemp("retrain")
    (root / "new").mkdir()
    sets = (("train", 20, 16), ("val", 3, 8), ("test", 5, 6), ("unlabeled", 4, 8))
    for seed, (split, documents, count) in enumerate(sets, 1):
        rows = rendered.rows(documents=documents, lines=count, split=split, font="serif", seed=seed)
        rendered.parquet(root / f"labelled/{split}.parquet", rows)
    shutil.copy(road["root"] / "mlflow.db", root)
    shutil.copytree(road["root"] / "ledger", root / "ledger")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
        registered.move_alias(Registry(), "champion", "1")
    return root


def arrive(place: Path, number: int, documents: int) -> None:
    rows = rendered.rows(
        documents=documents, lines=16, split="unlabeled", font="serif", seed=50 + number, source=f"batch {number}"
    )
    rendered.parquet(place / f"new/batch-{number}.parquet", rows)


def run(place: Path, *overrides: str, **environment: str) -> tuple[int, str]:
    rule = ["pretrain.workers=0", "retrain.settle_minutes=0", "retrain.min_lines=100", *overrides]
    command = [sys.executable, "-m", "maskocr_core.cli", "run", str(PIPELINE), f"data_uri={place / 'new'}"]
    command += [f"claims_uri={place / 'claims'}", f"labelled_uri={place / 'labelled'}", "recipe=smoke"]
    command += [f"overrides={json.dumps([*rule, STARTS])}", "--root", str(place / "pipelines")]
    settings = os.environ | {
        "MASKOCR_WORK": str(place / "stages"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{place / 'mlflow.db'}",
    }
    done = subprocess.run(command, env=settings | environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


STARTS = 'sweep.starts=["pretrained"]'
AFTER = ("quantize", "pretrain", "finetune", "evaluate", "register", "conclude")


def test_the_pipeline_waits_until_there_is_enough_and_then_makes_a_challenger(place, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place / 'mlflow.db'}")
    code, said = run(place)
    assert code == 0 and "fresh: nothing to do: there is nothing new below" in said, said
    assert all(f"{task}: SKIPPED" in said for task in ("ingest", "validate", "fit", "decide", *AFTER))

    arrive(place, 1, documents=3)
    code, said = run(place)
    assert code == 0 and "decide: Nothing to do: 48 new lines were accepted, of 100 that are enough" in said, said
    assert "decide: SUCCESS" in said and all(f"{task}: SKIPPED" in said for task in AFTER)
    assert [claim.state for claim in claims.read(str(place / "claims"))] == ["returned"]
    assert registered.version_tags(Registry(), "2") is None

    arrive(place, 2, documents=4)
    code, said = run(place)
    assert code == 0 and "decide: Train again: 112 new lines were accepted" in said and "SKIPPED" not in said, said
    assert "codebook and encoder of models:/maskocr/1 are gone on with" in said
    assert "and is kept" in said and "pretrain: goes on from the encoder of models:/maskocr/1" in said
    verdict = registered.version_tags(Registry(), "2")["verdict"]
    assert registered.version_of(Registry(), "challenger") == ("1" if verdict == "hold" else "2")
    done = claims.read(str(place / "claims"))[-1]
    assert done.state == "done" and done.reason == f"maskocr version 2, verdict {verdict}"
    assert [file.name for file in done.objects] == ["batch-1.parquet", "batch-2.parquet"]


def test_a_run_that_failed_after_its_claim_is_gone_on_with_under_its_name(place):
    arrive(place, 11, documents=6)
    code, said = run(place, "retrain.min_lines=1", "codebook.clusters=100000", MASKOCR_RUN="failing")
    assert code == 1 and "steps cannot make 100000 clusters: accept more lines" in said, said
    assert "task quantize of pipeline retrain failed: ValueError" in said
    (failed,) = [claim for claim in claims.read(str(place / "claims")) if claim.state == "claimed"]
    arrive(place, 13, documents=1)
    waits = ("retrain.min_lines=100000", "retrain.drift=1.0")
    code, said = run(place, *waits, MASKOCR_RUN="other")
    assert code == 0 and "is held by run failing" in said and "16 new lines were accepted" in said, said
    code, said = run(place, *waits, MASKOCR_RUN="failing")
    assert code == 0 and f"fresh: claim {failed.number}: {len(failed.objects)} new objects" in said, said
    assert "16 new lines" not in said and "ingest: nothing it reads has changed, reused" in said


def test_the_champion_labels_steps_where_an_encoder_is_to_and_none_is_given(place):
    arrive(place, 21, documents=7)
    code, said = run(place, "codebook.features=encoder")
    assert (
        code == 0 and "decide: models:/maskocr/1 labels the steps of a new codebook; its encoder is trained on" in said
    )
    assert "is kept" not in said and "pretrain: goes on from the encoder of models:/maskocr/1" in said
    books = [json.loads(path.read_text()) for path in place.glob("pipelines/*/quantize/codebook_out/codebook.json")]
    assert "encoder" in {book["features"]["kind"] for book in books}


def test_a_stage_of_the_road_that_is_reused_keeps_its_codebook_again(road, raw, smoke, monkeypatch):
    monkeypatch.setenv("MASKOCR_WORK", str(road["root"] / "stages"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{road['root'] / 'mlflow.db'}")
    monkeypatch.setenv("MASKOCR_RUN", "another")
    run_stage("quantize", smoke, raw, road["root"])
    store = tracking.artifact_store(f"runs:/{tracking.run_id(smoke.registry)}")
    assert f"codebook/{artifacts.MANIFEST}" in [file.path for file in store.list_artifacts("codebook")]
