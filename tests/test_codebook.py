from dataclasses import replace

import numpy as np
import packed
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from maskocr_core import config, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.config import STEP
from maskocr_core.model import codebook
from maskocr_core.model.step_features import Pixels, windows
from maskocr_core.training import codebooks

HEIGHT, WINDOW, CLUSTERS = 32, 16, 12


@pytest.fixture(scope="module")
def ink():
    """Smooth blots, as ink is: (6, 1, 32, 160)."""
    noise = torch.rand(6, 1, 8, 40, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(noise, scale_factor=4, mode="bicubic").clamp(0, 1)


@pytest.fixture(scope="module")
def book(ink):
    pixels = windows(ink, WINDOW).flatten(0, 1).numpy()
    return codebook.fit(pixels, height=HEIGHT, features=Pixels(WINDOW), components=8, clusters=CLUSTERS, seed=0)


def all_of(ink):
    return torch.ones(len(ink), ink.shape[3] // STEP, dtype=torch.bool)


def test_labels_are_those_of_a_slow_search_for_the_nearest_centroid(ink, book):
    mean, components, centroids = (part.double().numpy() for part in (book.mean, book.components, book.centroids))
    labels = book.labels(ink, all_of(ink))
    assert labels.shape == (6, 20) and labels.dtype == torch.int64
    for line, found in zip(ink[:, 0].numpy(), labels):
        wide = np.pad(line, ((0, 0), (4, 4)))  # white beyond the ends
        for step, label in enumerate(found):
            window = wide[:, step * STEP : step * STEP + WINDOW].reshape(-1)
            distances = [np.linalg.norm(components @ (window - mean) - centroid) for centroid in centroids]
            assert int(np.argmin(distances)) == label


def test_a_window_is_centred_on_its_step(ink):
    (window,) = windows(ink[:1], WINDOW)[0, 3:4]
    assert torch.equal(window.view(HEIGHT, WINDOW), ink[0, 0, :, 3 * STEP - 4 : 4 * STEP + 4])


def test_a_label_does_not_depend_on_what_the_line_is_batched_with(ink, book):
    alone = book.labels(ink[2:3, :, :, :80], all_of(ink)[2:3, :10])
    wide = torch.zeros(3, 1, HEIGHT, 320)
    wide[1, :, :, :80] = ink[2, :, :, :80]
    assert torch.equal(book.labels(wide, all_of(wide))[1, :10], alone[0])


def test_labels_are_made_in_float32_where_training_computes_in_bfloat16(ink, book):
    near = book.centroids.repeat(64, 1)
    fine = replace(book, centroids=near + 0.05 * torch.randn(near.shape, generator=torch.Generator().manual_seed(0)))
    with torch.autocast("cpu", torch.bfloat16):
        labels = fine.labels(ink, all_of(ink))
    assert torch.equal(labels, fine.labels(ink, all_of(ink)))


def test_lines_of_another_height_are_refused_with_the_mend(book):
    with pytest.raises(
        ValueError, match=r"made for lines 32 px high, these are 40 px: run quantize again, or set data.height=32"
    ):
        book.labels(torch.zeros(1, 1, 40, 64), torch.ones(1, 8, dtype=torch.bool))


def test_fewer_windows_than_clusters_are_refused_with_the_mend():
    with pytest.raises(
        ValueError, match=r"9 steps cannot make 10 clusters: accept more lines, or lower codebook.clusters"
    ):
        codebook.fit(
            np.zeros((9, HEIGHT * WINDOW), np.float32),
            height=HEIGHT,
            features=Pixels(WINDOW),
            components=4,
            clusters=10,
            seed=0,
        )


def test_the_same_seed_gives_the_same_codebook_and_another_seed_another(ink, book):
    pixels = windows(ink, WINDOW).flatten(0, 1).numpy()
    same, other = (
        codebook.fit(pixels, height=HEIGHT, features=Pixels(WINDOW), components=8, clusters=CLUSTERS, seed=seed)
        for seed in (0, 1)
    )
    assert torch.equal(same.centroids, book.centroids)
    assert not torch.equal(other.centroids, book.centroids)


@given(arrays.arrays(np.int64, st.integers(1, 200), elements=st.integers(0, CLUSTERS - 1)))
def test_perplexity_lies_between_one_and_the_number_of_labels_in_use(labels):
    assert 1 - 1e-9 <= codebook.perplexity(labels, CLUSTERS) <= len(set(labels.tolist())) + 1e-9


def test_perplexity_is_all_clusters_where_they_are_even_and_one_where_there_is_one():
    assert codebook.perplexity(np.repeat(np.arange(CLUSTERS), 5), CLUSTERS) == pytest.approx(CLUSTERS)
    assert codebook.perplexity(np.full(50, 3), CLUSTERS) == pytest.approx(1)


def test_quantize_says_how_often_its_most_frequent_label_comes(tmp_path):
    settings = config.load("smoke", ["codebook.clusters=8"])
    lines = packed.pack(tmp_path, {"unlabeled": packed.short_lines(24, seed=0)})
    metrics = stages.get("quantize")(settings, lines=lines[0], selection=lines[1], codebook_out=tmp_path / "codebook")
    book = codebooks.load(Artifact(tmp_path / "codebook"), settings.data)
    source = packed.source(lines, "unlabeled", settings.data)
    labels = np.concatenate(
        [book.labels(batch.ink, batch.valid)[batch.valid].numpy() for _, batch in source.in_order(5)]
    )
    sizes = np.bincount(labels, minlength=8)
    assert metrics["most_frequent_label_share"] == pytest.approx(sizes.max() / sizes.sum())
    assert Artifact(tmp_path / "codebook").read_json("cluster_sizes.json") == sizes.tolist()
    assert metrics["steps"] == sizes.sum() and metrics["empty_clusters"] == (sizes == 0).sum()
    assert 1 < metrics["perplexity"] <= 8
