"""quantize, shard by shard: what is sampled, and that it hangs on the lines alone."""

import os

import numpy as np
import packed
import pytest
import torch

from maskocr_core import artifacts, config, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.data import lines
from maskocr_core.model import codebook
from maskocr_core.model.step_features import Pixels, windows
from maskocr_core.training import labelling

CONFIG = config.load("smoke", ["codebook.clusters=8", "codebook.sample_lines=1000"])
ALL = labelling.Shares(1.0, 1.0)
PIXELS = Pixels(CONFIG.codebook.window)


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    """(lines, selection): 48 unlabelled lines in six shards."""
    content = {"unlabeled": packed.short_lines(48, seed=0)}
    return tuple(map(Artifact, packed.pack(tmp_path_factory.mktemp("packs"), content, shard_lines=8)))


def sampled(packs, folder, share, configuration=CONFIG) -> tuple[np.ndarray, int]:
    """Windows as ink, and the number of lines that they are from."""
    parts, count = [], 0
    for shard in lines.shards(packs[0], "unlabeled"):
        parts.append(folder / shard.replace("/", "-"))
        parts[-1].mkdir(parents=True)
        count += labelling.sample(*packs, shard, configuration, share, PIXELS, parts[-1])["lines"]
    return labelling.stacked(parts), count


def test_the_windows_of_a_whole_sample_are_those_of_the_lines_to_the_bit(packs, tmp_path):
    found, count = sampled(packs, tmp_path, ALL)
    source = packed.source((packs[0].folder, packs[1].folder), "unlabeled", CONFIG.data)
    expected = [windows(batch.ink, CONFIG.codebook.window)[batch.valid] for _, batch in source.in_order(7)]
    expected = torch.cat(expected).numpy()
    assert count == 48 and found.shape == expected.shape and found.dtype == np.float32
    assert sorted(map(bytes, found)) == sorted(map(bytes, expected))


def test_a_smaller_sample_is_part_of_a_larger_one_and_another_seed_draws_another(packs, tmp_path):
    small, few = sampled(packs, tmp_path / "small", labelling.Shares(0.4, 0.5))
    large, many = sampled(packs, tmp_path / "large", labelling.Shares(0.8, 0.5))
    assert 5 < few < many < 48 and len(small) < len(large)
    assert set(map(bytes, small)) <= set(map(bytes, large))
    other = CONFIG.model_copy(update={"codebook": CONFIG.codebook.model_copy(update={"seed": 1})})
    assert set(map(bytes, sampled(packs, tmp_path / "other", labelling.Shares(0.4, 0.5), other)[0])) != set(
        map(bytes, small)
    )


def test_the_shares_give_about_the_lines_asked_for_and_no_more_bytes_than_allowed(packs, tmp_path):
    asked = CONFIG.model_copy(update={"codebook": CONFIG.codebook.model_copy(update={"sample_lines": 24})})
    shards = lines.shards(packs[0], "unlabeled")
    share = labelling.shares(*packs, shards, asked, PIXELS, 1 << 30)
    assert share == labelling.Shares(0.5, 1.0)
    whole, count = sampled(packs, tmp_path / "whole", share)
    assert 12 < count < 36
    half = labelling.shares(*packs, shards, asked, PIXELS, whole.nbytes // 2)
    assert sampled(packs, tmp_path / "half", half)[0].nbytes == pytest.approx(whole.nbytes / 2, rel=0.3)
    assert labelling.shares(*packs, shards, CONFIG, PIXELS, 1 << 30) == ALL


def test_the_counts_of_all_shards_are_those_of_the_labels(packs, tmp_path):
    steps, _ = sampled(packs, tmp_path / "steps", ALL)
    settings = CONFIG.codebook
    book = codebook.fit(
        steps, height=CONFIG.data.height, features=PIXELS, components=settings.components, clusters=8, seed=0
    )
    shards = lines.shards(packs[0], "unlabeled")
    parts = [tmp_path / str(number) for number in range(len(shards))]
    for part, shard in zip(parts, shards):
        part.mkdir()
        labelling.count(*packs, shard, CONFIG, ALL, book, part)
    sizes, ink = labelling.counted(parts, 8, CONFIG.data.height, settings.window)
    source = packed.source((packs[0].folder, packs[1].folder), "unlabeled", CONFIG.data)
    labels = np.concatenate(
        [book.labels(batch.ink, batch.valid)[batch.valid].numpy() for _, batch in source.in_order(5)]
    )
    assert sizes.tolist() == np.bincount(labels, minlength=8).tolist()
    around = [windows(batch.ink, settings.window)[batch.valid].numpy() for _, batch in source.in_order(5)]
    assert ink[3].ravel() == pytest.approx(np.concatenate(around)[labels == 3].sum(0), rel=1e-4)


def test_without_an_accepted_line_quantize_and_pretrain_say_so_at_once(packs, tmp_path):
    nothing = tmp_path / "selection"
    made_of, chosen = (artifact.folder for artifact in packs)
    for name in packs[1].names(suffix=".parquet"):
        lines.write(lines.SELECTION.empty_table(), nothing / name)
    artifacts.finish(nothing, kind="selection", config={}, metrics={})
    inputs = {"lines": made_of, "selection": nothing}
    book = packed.quantized(tmp_path / "book", (made_of, chosen), CONFIG)
    for name, more in (
        ("quantize", {"codebook_out": tmp_path / "q"}),
        ("pretrain", {"encoder_out": tmp_path / "p", "codebook": book}),
    ):
        with pytest.raises(ValueError, match="admits no unlabelled line of .* see the verdicts of fit"):
            stages.get(name)(CONFIG, **inputs, **more)


def test_relative_paths_are_found_from_another_folder_too(packs, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKOCR_MAP", "inline")
    folders = {name: os.path.relpath(artifact.folder) for name, artifact in zip(("lines", "selection"), packs)}
    seen = []
    monkeypatch.setattr(
        labelling, "sample", lambda *call: seen.append(call[0].folder) or {"lines": 0, "cpu_seconds": 0.0}
    )
    with pytest.raises(FileNotFoundError):
        stages.get("quantize")(CONFIG, **folders, codebook_out=tmp_path / "out")
    assert seen and all(folder.is_absolute() for folder in seen)
