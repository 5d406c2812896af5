"""The benchmarks of speed: that they compare equal work, and that their results have the form of all results."""

import io
import json
import math
import subprocess
import sys
from itertools import count, product
from types import SimpleNamespace

import numpy as np
import packed
import pyarrow.parquet as pq
import pytest
import rendered
from PIL import Image

from benchmarks import (
    comparison,
    coverage,
    data,
    data_contenders,
    data_corpus,
    data_figures,
    data_worker,
    gpu,
    method,
    method_figures,
    results,
    train,
    train_contenders,
    train_figures,
    train_labels,
    train_profile,
    train_workers,
)
from maskocr_core import config
from maskocr_core.artifacts import Artifact
from maskocr_core.judging.comparison import Readings
from maskocr_core.training import codebooks, distributed


class Inside:
    """`data.Racer` without a process of its own."""

    def __init__(self, function, **arguments):
        self.work, self.arguments = getattr(data_worker, function), arguments

    def run(self, number, **special):
        return self.work(**self.arguments, number=number, **special) | {"peak_mib": data_worker._status("VmHWM")}

    def close(self):
        pass


@pytest.fixture(scope="module")
def result(raw, tmp_path_factory):
    home = tmp_path_factory.mktemp("benchmark")
    words = ["--data", str(raw / "target"), "--lines", "32", "--times", "6", "--rounds", "2", "--stages", "ingest"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "Racer", Inside)
        patch.setattr(results, "FOLDER", home / "results")
        for name in ("MASKOCR_WORK", "MASKOCR_MAP"):  # a worker sets them
            patch.setenv(name, "inline")
        path = data.main([*words, "--work", str(home), "--name", "trial"])
    assert not list(home.glob("benchmark-*")), "what was made for the races is still there"
    return json.loads(path.read_text())


def test_a_run_leaves_figures_with_goals_and_spreads(result):
    assert {"command", "commit", "versions", "cpu", "threads", "seeds", "data", "figures", "runs"} <= set(result)
    for name, figure in result["figures"].items():
        assert set(figure) == {"value", "unit", "goal", "better", "spread"}, name
        assert math.isfinite(figure["value"]) and figure["better"] in ("higher", "lower"), name
        assert figure["spread"] is None or figure["spread"][0] <= figure["value"] <= figure["spread"][1], name
    assert {"read_48_maskocr", "read_48_over_decode", "read_40_over_files", "ingest_pairs_mb"} <= set(result["figures"])
    assert {"read_peak_maskocr", "grown_ingest_million", "grown_ingest_slope", "grown_read_memory"} <= set(
        result["figures"]
    )


def test_the_table_has_a_row_for_every_contender_of_every_race(result):
    shown = data_figures.table(result)
    run = result["runs"][0]
    for name in {*run["reading"]["48"][0], *run["ingest"][0]}:
        assert f"| {data_figures.TITLES[name]} |" in shown
    assert result["command"] in shown


def test_a_peer_that_is_not_installed_is_left_out_and_said_to_be(monkeypatch, capsys):
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    assert set(data.installed()) == {"decode", "maskocr", "files"}
    assert "lmdb is not installed" in capsys.readouterr().out


def test_a_reader_that_loses_lines_is_found_out():
    whole = {"ink": 100.0, "lines": 10}
    data._demand_the_same_work({"decode": {"lines": 10}, "maskocr": whole, "files": whole})
    with pytest.raises(RuntimeError, match="not the same work"):
        data._demand_the_same_work({"decode": {"lines": 10}, "maskocr": whole, "files": {"ink": 100.0, "lines": 9}})
    with pytest.raises(RuntimeError, match="not the same work"):
        data._demand_the_same_work({"decode": {"lines": 10}, "maskocr": whole, "files": {"ink": 50.0, "lines": 10}})


def test_a_worker_that_fails_leaves_its_last_words():
    racer = data.Racer("read", contender="files", folder="/nowhere")
    with pytest.raises(RuntimeError, match="read files failed(.|\n)*FileNotFoundError"):
        racer.run(1, height=48, decoder="pillow")


@pytest.mark.parametrize("form", ["WEBP", "PNG"])
def test_a_copy_of_a_line_has_its_pixels_in_other_bytes(form):
    buffer = io.BytesIO()
    Image.fromarray(rendered.line("Brücke", seed=1)).save(buffer, form)
    image = buffer.getvalue()
    row = {"image": image, "split": "unlabeled", "page": "p", "doc": "d", "text": None}
    copies = [row["image"] for row in data_corpus.lines([row], 3)]
    assert copies[0] == image and len(set(copies)) == 3
    pixels = [data_contenders.by_pillow(copy, 48) for copy in copies]
    assert all(np.array_equal(pixels[0], others) for others in pixels)


def test_labelled_lines_are_not_repeated_so_that_no_copy_leaks_into_another_split():
    rows = [
        {"image": rendered.png(rendered.line(split, seed=1)), "split": split, "page": "p", "doc": "d", "text": split}
        for split in ("train", "test", "unlabeled")
    ]
    drawn = list(data_corpus.lines(rows, 5))
    assert [row["split"] for row in drawn] == ["train", "test", *["unlabeled"] * 5]
    with pytest.raises(ValueError, match="no unlabelled lines"):
        list(data_corpus.lines(rows[:2], 5))


def test_the_decoders_agree_on_a_plain_line():
    image = rendered.png(rendered.line("Glocke", seed=2))
    ours, theirs = data_contenders.by_us(image, 40), data_contenders.by_pillow(image, 40)
    assert np.array_equal(ours, theirs) and np.array_equal(theirs, data_contenders.by_opencv(image, 40))


@pytest.fixture(scope="module")
def trained(raw, tmp_path_factory):
    """The result of the benchmark of training, tiny and in this process, with a stand-in for the workers."""
    home = tmp_path_factory.mktemp("training")
    words = (
        "--lines 64 --rounds 2 --recipe smoke --profiled smoke --padded smoke --worker-steps 20 --meetings 3".split()
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "FOLDER", home / "results")
        patch.setattr(train_profile, "PEAK_SIZE", 64)
        inline = distributed.data_parallel
        patch.setattr(train_workers, "data_parallel", lambda *call, workers, **rest: inline(*call, workers=0, **rest))
        for name in ("MASKOCR_WORK", "MASKOCR_MAP", "CUDA_VISIBLE_DEVICES", *train.ONE_THREAD):
            patch.setenv(name, "inline")
        path = train.main([*words, "--data", str(raw / "target"), "--work", str(home), "--name", "trial"])
    return json.loads(path.read_text())


def test_the_profile_of_a_step_accounts_for_all_of_its_time(trained):
    figures = trained["figures"]
    for row in trained["runs"][0]["profile"]["smoke"]:
        assert sum(part["seconds"] for part in row["parts"].values()) == pytest.approx(row["seconds"])
        assert all(part["seconds"] > 0 for part in row["parts"].values())
    assert set(train_figures.PARTS) == {name[12:] for name in figures if name.startswith("share_smoke_")}
    assert figures["of_peak_smoke_blocks"]["goal"]


def test_ours_is_raced_against_peers_of_about_its_size_and_those_not_given_are_named(trained):
    run = trained["runs"][0]
    assert set(run["left_out"]) == {"authors", "ketos"}
    sizes = run["parameters"]
    assert sizes["obvious"] == sizes["noise"]
    shown = train_figures.table(trained)
    for name in {*run["race"][0], *run["left_out"]}:
        assert train_figures.TITLES[name] in shown
    assert "A trial" in shown and trained["command"] in shown


def test_padding_is_counted_and_said_without_a_clock(trained):
    alone = trained | {"figures": {"padding_smoke": trained["figures"]["padding_smoke"]}}
    alone["runs"] = [trained["runs"][0] | {"profile": {}, "race": [], "labels": [], "workers": []}]
    shown = train_figures.table(alone)
    assert 0 < alone["figures"]["padding_smoke"]["value"] < 1 and "% (`smoke`)" in shown
    assert "one thread each" not in shown and "A trial" not in shown


def test_two_trainings_that_say_nothing_to_each_other_stand_beside_two_workers(trained):
    for row in trained["runs"][0]["workers"]:
        assert row["apart_2"]["lines"] == 2 * row["apart_1"]["lines"]
        assert all(0 <= row[name]["waited"] < row[name]["seconds"] for name in ("workers_1", "workers_2"))
    assert trained["figures"]["apart_2_over_1"]["value"] > 0
    assert trained["figures"]["data_wait_2"]["value"] < 1
    assert "none of each other's" in train_figures.table(trained)
    assert "waits for lines, which they read from shards" in train_figures.table(trained)


def test_a_commit_whose_files_were_changed_says_so_in_a_table():
    assert results.short("baa2476d719d33f8") == "`baa2476`"
    assert results.short("baa2476d719d33f8-dirty") == "`baa2476` with files changed"


def test_labels_made_at_every_meeting_race_those_made_once_over_whole_trainings(trained):
    rounds, figures = trained["runs"][0]["labels"], trained["figures"]
    for row in rounds:
        assert {answer["lines"] for answer in row.values()} == {3 * 64}
    for features in train_labels.FEATURES:
        ratios = [row[f"{features}_met"]["seconds"] / row[f"{features}_stored"]["seconds"] for row in rounds]
        assert figures[f"labels_{features}_stored_over_met"]["spread"] == pytest.approx([min(ratios), max(ratios)])
    assert "3 meetings of each line" in train_figures.table(trained)


def test_the_speed_of_workers_is_that_of_their_log_without_its_first_row():
    rows = [
        {"step": step, "lines_per_second": speed, "data_wait": share}
        for step, speed, share in ((20, 40.0, 0.5), (30, 20.0, 0.25))
    ]
    assert train_workers.of_log(rows, 8) == {"lines": 160, "seconds": pytest.approx(2 + 4), "waited": pytest.approx(2)}


def test_kraken_is_timed_without_its_start(tmp_path):
    program = tmp_path / "ketos"
    program.write_text("#!/bin/sh\nwc -l < train.lst >> said\necho Total params: 3.2 M\n")
    program.chmod(0o755)
    ketos = train_contenders.Ketos(program, [b"a line"] * 16, tmp_path / "lines")
    assert ketos.run(1)["lines"] == 12 and ketos.parameters == 3.2e6
    assert (tmp_path / "lines" / "said").read_text().split() == ["4", "16"]


def test_our_own_training_is_raced_with_the_batches_of_its_recipe(tmp_path):
    """Those of the paper's recipes are filled by tokens."""
    settings = config.load("smoke", ["pretrain.fill=tokens", "model.width=32"])
    lines = packed.pack(tmp_path, {"unlabeled": packed.short_lines(64, seed=0, length=(3, 30))})
    book = codebooks.load(Artifact(packed.quantized(tmp_path / "codebook", lines, settings)), settings.data)
    ours, seen = train_contenders.Ours(settings, packed.source(lines, "unlabeled", settings.data), book), []

    def watched(stream):
        for batch in stream:
            seen.append(len(batch.line_ids))
            yield batch

    answer = ours.steps(0, 6, watched)
    assert answer["lines"] == sum(seen[:6]) and len(set(seen)) > 1


def test_the_intervals_that_reports_print_hold_the_truth_more_often_than_those_of_lines(monkeypatch):
    monkeypatch.setattr(coverage, "DOCUMENTS", (6,))
    rows = {(row["what"], row["method"]): row["held"] for row in coverage.measure(60)}
    for what in ("cer", "difference"):
        assert rows[what, "documents"] >= 0.85 > rows[what, "lines"] + 0.02


def test_a_speed_is_not_measured_beside_other_work_under_its_usual_name():
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with pytest.raises(RuntimeError, match="other programs use .* cores: .* under another --name"):
            results.demand_quiet("train", "train", seconds=1.5)
        results.demand_quiet("trial", "train", seconds=0.1)
    finally:
        busy.kill()
        busy.wait()


def test_rounds_on_a_gpu_are_timed_without_the_steps_that_compile_and_count_the_lines_of_their_batches(monkeypatch):
    clock = count()
    monkeypatch.setattr(gpu.torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: next(clock))
    watch = gpu.Watch()
    stream = watch.watching(SimpleNamespace(line_ids=["line"] * (number % 5)) for number in count())
    drawn = [len(next(stream).line_ids) for _ in range(gpu.FIRST + 2 * gpu.STEPS + 1)]
    first, second = (drawn[gpu.FIRST + begin : gpu.FIRST + begin + gpu.STEPS] for begin in (0, gpu.STEPS))
    assert [row["lines"] for row in watch.rounds()] == [sum(first), sum(second)]
    assert [row["seconds"] for row in watch.rounds()] == [2 * gpu.STEPS + 1] * 2
    assert [row["data_wait"] for row in watch.rounds()] == [gpu.STEPS / (2 * gpu.STEPS + 1)] * 2


def test_the_result_of_a_gpu_says_what_each_part_brings(monkeypatch, tmp_path):
    def told(*seconds):
        rows = [{"lines": 600.0, "seconds": each, "data_wait": 0.1, "operations": 3e12} for each in seconds]
        return {"rounds": rows, "first_seconds": 9.0, "memory": 4e9}

    variants = {"shipped": told(1.0, 2.0), "eager": told(2.0, 2.0), "float32": told(4.0, 4.0)}
    variants |= {"cudnn": told(6.0), "masked": told(1.0, 1.0)}
    run = {"recipe": "paper-3m", "variants": variants, "parameters": 3e6, "expected_memory": 8e9, "mean_width": 626.0}
    found = gpu.figures([run], [100e12, 100e12])
    assert found["paper_3m_shipped"]["value"] == 450 and found["paper_3m_over_float32"]["spread"] == [2.0, 4.0]
    assert found["paper_3m_over_cudnn"]["value"] == 6.0
    assert found["paper_3m_of_peak"]["spread"] == [0.015, 0.03] and found["paper_3m_memory_over_plan"]["value"] == 0.5
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    path = results.save(
        "gpu", command="python benchmarks/gpu.py", figures=found, runs=[run | {"card": "X", "torch": "2"}]
    )
    table = gpu.table(json.loads(path.read_text()))
    assert all(title in table for title in gpu.TITLES.values()) and "150 [150, 150]" in table


def test_a_pack_without_unlabelled_lines_gives_those_past_its_budget_without_their_texts(tmp_path):
    (few,) = (pack for pack in method.PACKS.values() if pack.name == "fraktur_print")
    rows = rendered.rows(documents=2, lines=4, split="train", font="serif", seed=1)
    rendered.parquet(tmp_path / few.name / "train.parquet", [row | {"order": 998 + n} for n, row in enumerate(rows)])
    rendered.parquet(tmp_path / few.name / "val.parquet", rows)
    folder = method.laid_out(few, tmp_path, tmp_path / "home")
    table = pq.read_table(folder / "train.parquet").to_pylist()
    assert [row["split"] for row in table] == ["train"] * 2 + ["unlabeled"] * 6
    assert [bool(row["text"]) for row in table] == [True] * 2 + [False] * 6
    assert pq.read_table(folder / "val.parquet").to_pylist() == rows
    rendered.parquet(tmp_path / few.name / "unlabeled.parquet", rows)
    assert method.laid_out(few, tmp_path, tmp_path / "home") == tmp_path / few.name


def test_a_row_of_the_method_says_what_its_runs_came_to_and_how_it_stands_to_scratch_and_transfer(monkeypatch):
    texts, documents = ["abcdefghij"] * 8, list("aabbccdd")
    wrong = ["abcdefghi?"] * 7 + ["abcdefgh??"]
    monkeypatch.setattr(method.Comparison, "__init__", lambda self: None)
    monkeypatch.setattr(method.Comparison, "validation", lambda self: SimpleNamespace(texts=texts, documents=documents))
    read = [Readings("scratch", {"all": [wrong, wrong]}), Readings("pretrained", {"all": [texts, wrong]})]
    run = {"chosen": True, "learning_rate": 0.002, "validation_cer": dict.fromkeys(("quarter", "half", "all"), 0.1)}
    run |= {"curve": [[250, 0.2]], "cpu_seconds": 90.0}
    made = {row.start: {"runs": [run, run, run | {"chosen": False}]} for row in read}
    scratch, pretrained = method.Comparison().compared(read, made)
    assert scratch["verdict"] == "baseline" and scratch["differences"] == {}
    assert scratch["cer"]["all"]["value"] == pytest.approx(9 / 80) and scratch["by_seed"]["all"] == [0.1, 0.1]
    assert pretrained["differences"]["scratch"]["value"] == pytest.approx(-4.5 / 80)
    assert pretrained["cpu_minutes"] == 1.5 and pretrained["curves"] == [[[250, 0.2]]] * 2


def test_the_better_learning_rate_on_validation_makes_the_rows_and_the_other_one_is_told_too(monkeypatch):
    texts, documents = ["abcdefghij"] * 8, list("aabbccdd")
    monkeypatch.setattr(method.Comparison, "__init__", lambda self: None)
    monkeypatch.setattr(method.Comparison, "validation", lambda self: SimpleNamespace(texts=texts, documents=documents))

    def carried_out(self, calls):
        for call in calls:
            runs = [
                dict(
                    learning_rate=rate, seed=seed, budget=call.budget, chosen=rate == 0.001, curve=[], cpu_seconds=60.0
                )
                | {"validation_cer": dict.fromkeys(("quarter", "half", "all"), rate)}
                for rate in call.rates
                for seed in call.seeds
            ]
            yield {"runs": runs}, [Readings(call.start, {"all": [texts] * len(runs)})]

    monkeypatch.setattr(method.Comparison, "carried_out", carried_out)
    compared = method.Comparison()
    compared.pack = method.Pack("pack", "other", (30, 10), ("scratch", "pretrained"))
    rows = compared.rows()
    assert [(row["budget"], row["start"]) for row in rows] == list(product((30, 10), ("scratch", "pretrained")))
    for row in rows:
        assert row["learning_rate"] == 0.001 and row["by_seed"]["all"] == [0.001, 0.001]
        told = [
            (run["learning_rate"], run["seed"], run["budget"], run["validation_cer"]["all"]) for run in row["tried"]
        ]
        assert told == [(rate, 0, 10, rate) for rate in method.RATES]


def test_the_method_is_held_against_scratch_and_transfer_seed_by_seed():
    def row(start, *cers, budget=300):
        marks = dict.fromkeys(("quarter", "half", "all"), list(cers))
        difference = {"value": sum(cers) / 2 - 0.38, "low": -0.01, "high": 0.02}
        return {
            "start": start,
            "budget": budget,
            "decoder": "ctc",
            "learning_rate": 0.002,
            "cer": {"all": {"value": sum(cers) / 2}},
            "by_seed": marks,
            "cpu_minutes": 14.0,
            "differences": {} if start == "transfer" else {"transfer": difference},
        }

    rows = [row("scratch", 0.5, 0.6), row("transfer", 0.4, 0.36), row("pretrained", 0.4, 0.45), row("both", 0.3, 0.36)]
    along = [{"step": 1, "probe_cer": 0.9}, {"step": 9, "probe_cer": 0.5, "masked_accuracy": 0.12}]
    run = {
        "pack": "fr_hand",
        "commit": "c" * 40,
        "changes": ["codebook.features=encoder", "pretrain.steps=5000"],
        "fine_tuned_on": "CPU",
        "rows": rows,
        "pretraining": [{"budgets": [300, 1000], "metrics": {"cpu_minutes": 40.0, "probe_cer": 0.4}, "along": along}],
        "command": "python benchmarks/method.py fr_hand",
        "lines": 952,
        "documents": 4,
        "data": "d" * 64,
    }
    again = run | {"rounds": 2, "rows": [*rows[:2], row("pretrained", 0.35, 0.4)]}
    alone = run | {"changes": ["pretrain.steps=900"], "rows": [*rows[:2], row("pretrained", 0.5, 0.6)]}
    longer = again | {"last_round": ["pretrain.steps=9000"], "rows": [*rows[:2], row("pretrained", 0.3, 0.36)]}
    frozen = again | {"fine_tuning": ["sweep.frozen=0.2"]}
    assert method_figures.told_apart(frozen) == ("round 2", "fine-tuned with sweep.frozen=0.2")
    found = method_figures.figures([run, again, alone, longer])
    assert found["lower_than_scratch_fr_hand_300_pretrained_labels_of_gradients_pretrain_steps_900"]["value"] == 0
    assert found["lower_than_scratch_fr_hand_300_pretrained_round_2"]["value"] == pytest.approx(1 - 0.75 / 1.1)
    last = found["lower_than_scratch_fr_hand_300_pretrained_round_2_the_last_round_with_pretrain_steps_9000"]
    assert last["value"] == pytest.approx(1 - 0.66 / 1.1) and last["goal"] == 0.25
    ours = found["lower_than_scratch_fr_hand_300_pretrained"]
    assert ours["value"] == pytest.approx(1 - 0.85 / 1.1) and ours["spread"] == pytest.approx([0.2, 0.25])
    assert ours["goal"] == 0.25 and found["lower_than_scratch_fr_hand_300_both"]["goal"] is None
    theirs = found["lower_than_transfer_fr_hand_300_pretrained"]
    assert theirs["value"] == pytest.approx(1 - 0.85 / 0.76) and theirs["goal"] == 0.0
    assert "lower_than_transfer_fr_hand_300_scratch" not in found
    other = run | {"changes": [], "rows": [row("scratch", 0.9, 1.0), row("pretrained", 0.5, 0.6)]}
    table = method_figures.table(
        {
            "runs": [run, again, alone, longer, other],
            "figures": found,
            "seeds": [0, 1],
            "command": "python benchmarks/method.py",
        }
    )
    assert (
        table.count("| transfer |") == table.count("| from scratch |") == 1
        and "| from scratch, beside labels of gradients |" in table
        and "| pre-trained, round 2 |" in table
        and "| pre-trained, round 2, the last round with pretrain.steps=9000 |" in table
        and "fr_hand, round 2, `python benchmarks/method.py fr_hand`: 952" in table
    )
    assert "| 22.7 % [20.0, 25.0] | 25 % | +4.5 [-1.0, +2.0] | 14 |" in table
    assert (
        "pre-training for 300 and 1,000 labels 40 CPU minutes (12 % of hidden labels guessed at its end; CER of a linear probe of the frozen encoder 90 to 40 %"
        in table
    )


def test_a_pack_says_the_command_that_makes_its_rows_again():
    asked = {
        "budgets": [300],
        "starts": ["scratch", "pretrained"],
        "rounds": 2,
        "set": ["model.stem=slim"],
        "last_round": ["pretrain.steps=9000"],
        "fine_tuning": ["sweep.frozen=0.2"],
        "work": "w",
    }
    said = method.command("fr_hand", SimpleNamespace(**asked))
    assert said == (
        "python benchmarks/method.py fr_hand --budgets 300 --starts scratch pretrained --rounds 2 --set model.stem=slim "
        "--last-round pretrain.steps=9000 --fine-tuning sweep.frozen=0.2"
    )
    none = SimpleNamespace(budgets=None, starts=None, rounds=1, set=[], last_round=[], fine_tuning=[])
    assert method.command("fraktur_print", none) == "python benchmarks/method.py fraktur_print"


def test_the_comparison_of_packs_has_a_column_for_every_budget_and_says_what_labels_were_saved():
    def cer(value):
        return {"value": value, "low": value - 0.01, "high": value + 0.01, "documents": 15}

    def pack(name, budgets):
        minutes = {"pretrain": 20.0, "transfer": 0.0, "finetune": 4.0}
        saving = {"start": "pretrained", "saved": 450.0, "scratch_labels": 1000.0, "target_cer": 0.05}
        return {
            "pack": name,
            "recipe": "pilot",
            "changes": ["sweep.steps=750"],
            "seeds": [0, 1],
            "lines": 411,
            "documents": 15,
            "confidence": 0.95,
            "data": "d" * 64,
            "commit": "c" * 40,
            "candidate": "pretrained",
            "verdict": {"verdict": "first", "reason": "There is no champion."},
            "starts": [{"start": "pretrained", "verdict": "better", "cpu_minutes": minutes}],
            "efficiency": [
                {"start": "pretrained", "budget": budget, "cer": cer(10 / budget), "by_seed": [9 / budget, 11 / budget]}
                for budget in budgets
            ],
            "curves": [{"saving": None}, {"saving": saving}],
            "returns": [{"start": "pretrained", "verdict": "go"}],
        }

    packs = [pack("fraktur_print", (100, 300)), pack("fr_hand", (300, 1000))]
    table = comparison.table({"command": "python benchmarks/comparison.py", "runs": packs})
    head, _, first, second, *_ = table.splitlines()
    assert head.count("test CER with") == 3
    cells = [cell.strip() for cell in first.split("|")][3:6]
    assert cells == ["10.0 % [9.0, 11.0]; seeds 9.0 to 11.0", "3.3 % [2.3, 4.3]; seeds 3.0 to 3.7", ""]
    assert [cell.strip() for cell in second.split("|")][3] == ""
    assert "pre-trained 450 of 1,000" in table and "pre-trained go" in table
    found = comparison.figures(packs)
    assert len(found) == 4 and found["cer_fr_hand_1000_pretrained"]["value"] == 0.01
    unusable = {"usable": False, "reason": "only 3 of 40 lines read exactly"}
    rate = {"value": 0.5, "low": 0.4, "high": 0.6}
    usable = {"usable": True, "table": [{"sentence": "at 1 % …"}], "ece": rate, "auroc": rate, "chance": 0.02}
    for one, said in zip(packs, (unusable, usable)):
        one["calibration"] = said
    said = comparison.operating({"command": "python benchmarks/comparison.py", "runs": packs})
    assert "not usable: only 3 of 40 lines read exactly. `python benchmarks/comparison.py fraktur_print`" in said
    assert "- at 1 % …" in said and "ECE 50.0 points [40.0, 60.0], by chance 2.0; AUROC 0.50 [0.40, 0.60]." in said


def test_a_row_of_the_ablation_stays_until_its_lines_or_its_recipe_are_others():
    from benchmarks import ablation

    row = {"arm": "recipe", "configuration": ablation.configuration(ablation.ARMS["recipe"])}
    other = ablation.configuration(ablation.ARMS["convolutional"])
    runs = [row, row | {"configuration": other}, {"arm": "recipe"}, row | {"arm": "gone"}]
    assert ablation.still_comparable({"data": {"lines": "a"}, "runs": runs}, "a") == [row]
    assert ablation.still_comparable({"data": {"lines": "a"}, "runs": runs}, "b") == []
