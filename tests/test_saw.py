"""What a model says it was trained on."""

import packed
import rendered

from maskocr_core import artifacts
from maskocr_core.artifacts import Artifact
from maskocr_core.data import tombstones
from maskocr_core.training import saw, sweep
from maskocr_core.training.saw import Saw


def content(count: int, seed: int) -> list:
    return [(rendered.words(seed + number), rendered.line("a", seed=seed + number)) for number in range(count)]


def test_the_documents_of_admitted_lines_are_seen_and_no_others(tmp_path):
    admitted = {"train": content(20, 0), "unlabeled": content(9, 100)}
    lines, selection = map(Artifact, packed.pack(tmp_path, admitted))
    seen = saw.of_lines(lines, selection, ["train"])
    assert seen == Saw(frozenset(tombstones.digest("rendered", f"train/document-{number}") for number in range(3)))
    without = tmp_path / "without"
    artifacts.write_json(without / "nothing.json", {})
    artifacts.finish(without, kind="selection", config={}, metrics={})
    assert saw.of_lines(lines, Artifact(without), ["train", "unlabeled"]) == Saw()


def test_what_was_seen_is_read_back_and_a_model_that_does_not_say_is_not_known(tmp_path):
    seen = Saw(frozenset({"b", "a"}))
    seen.write(tmp_path)
    assert saw.read(tmp_path) == seen
    assert saw.read(tmp_path / "absent") == Saw(complete=False)
    assert seen | saw.read(tmp_path / "absent") == Saw(frozenset({"a", "b"}), complete=False)


def test_a_start_saw_the_target_and_what_it_started_from():
    parts = {name: Saw(frozenset({name})) for name in ("target", "encoder", "transfer")}
    seen = {start: sweep.seen(start, parts).documents for start in ("scratch", "transfer", "pretrained", "both")}
    assert seen == {
        "scratch": {"target"},
        "transfer": {"target", "transfer"},
        "pretrained": {"target", "encoder"},
        "both": {"target", "encoder", "transfer"},
    }
