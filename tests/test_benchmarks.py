"""The benchmark of the data half: that it compares equal work, and that its result has the form of all results."""

import io
import json
import math

import numpy as np
import pytest
import rendered
from PIL import Image

from benchmarks import data, data_contenders, data_corpus, data_figures, data_worker, results


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
        path = data.main([*words, "--work", str(home)])
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
