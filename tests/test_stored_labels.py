"""Labels made once before training: the same labels, the same training, and none of a line that is forgotten."""

from dataclasses import replace

import numpy as np
import packed
import pytest
import torch

from maskocr_core import artifacts, config, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.data import admitted, batches, lines, tombstones
from maskocr_core.model import step_features
from maskocr_core.training import checkpoint, codebooks, pretraining, stored_labels

CONFIG = config.load("smoke", ["pretrain.steps=16"])


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    """(lines, selection): 150 unlabelled lines in two shards of more than one row group, and a few to validate on."""
    content = {"unlabeled": packed.short_lines(150, seed=0), "val": packed.short_lines(4, seed=1)}
    return packed.pack(tmp_path_factory.mktemp("packs"), content, shard_lines=80)


@pytest.fixture(scope="module")
def codebook(packs, tmp_path_factory):
    return packed.quantized(tmp_path_factory.mktemp("codebook"), packs, CONFIG)


@pytest.fixture(scope="module")
def book(codebook):
    return codebooks.load(Artifact(codebook), CONFIG.data)


@pytest.fixture(scope="module")
def labels(packs, book, tmp_path_factory):
    folder, seconds = stored_labels.store(CONFIG, *map(Artifact, packs), book, tmp_path_factory.mktemp("labels"))
    assert seconds > 0
    return folder


def labelled(packs, labels):
    return stored_labels.LabelledStream(*map(Artifact, packs), CONFIG.data, Artifact(labels))


def drawn(source, steps=12):
    stream = batches.training(source, batch=8, seed=3)
    return [next(stream) for _ in range(steps)]


def contextual(book):
    """The codebook with an encoder instead of pixels; its projection takes what the encoder says of a step."""
    torch.manual_seed(0)
    encoder = checkpoint.new_encoder(CONFIG.model, CONFIG.data.height)
    width = CONFIG.model.width
    return replace(
        book,
        features=step_features.Contextual(encoder),
        mean=torch.zeros(width),
        components=torch.randn(book.components.shape[0], width),
    )


def test_batches_are_those_without_labels_and_the_labels_those_of_their_own_lines(packs, labels, book):
    plain = drawn(packed.stream(packs, "unlabeled", CONFIG.data))
    for batch, own in zip(drawn(labelled(packs, labels)), plain):
        assert batch.line_ids == own.line_ids and torch.equal(batch.ink, own.ink)
        assert torch.equal(batch.labels[own.valid], book.labels(own.ink, own.valid)[own.valid])
        assert not batch.labels[~own.valid].any()


def test_training_with_them_is_the_same_to_the_bit(packs, codebook, labels, tmp_path):
    encoders = []
    for name, given in (("made", None), ("stored", labels)):
        pretraining.train(0, 1, CONFIG, *packs, codebook, tmp_path / name, labels=given)
        encoders.append((tmp_path / name / "encoder/encoder.safetensors").read_bytes())
    assert encoders[0] == encoders[1]


def test_an_encoder_gives_a_line_the_same_labels_as_when_it_is_met(packs, book, tmp_path):
    described = contextual(book)
    folder, _ = stored_labels.store(CONFIG, *map(Artifact, packs), described, tmp_path)
    same = total = 0
    for batch in drawn(labelled(packs, folder)):
        met = described.labels(batch.ink, batch.valid)[batch.valid]
        same, total = same + int((batch.labels[batch.valid] == met).sum()), total + len(met)
    assert (
        same / total > 0.995
    )  # other neighbours in a batch round otherwise, so that a step between two centroids may turn


def test_a_forgotten_line_has_no_labels_in_a_batch_and_takes_none_from_others(packs, labels, book):
    doomed = admitted.selected(*map(Artifact, packs), "unlabeled").slice(40, 1).to_pylist()[0]
    tombstones.add([tombstones.entry("asked", "rendered", doomed["document_id"])])
    found = drawn(labelled(packs, labels), steps=30)
    assert doomed["line_id"] not in {one for batch in found for one in batch.line_ids}
    for batch in found:
        assert torch.equal(batch.labels[batch.valid], book.labels(batch.ink, batch.valid)[batch.valid])


def test_a_shard_that_was_labelled_before_a_kill_is_not_labelled_again(packs, book, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKOCR_MAP", "inline")
    first, _ = stored_labels.store(CONFIG, *map(Artifact, packs), book, tmp_path)
    before = Artifact(first).version
    monkeypatch.setattr(stored_labels, "label", None)
    assert Artifact(stored_labels.store(CONFIG, *map(Artifact, packs), book, tmp_path)[0]).version == before


def test_a_line_whose_labelled_copy_was_forgotten_is_refused_instead_of_labelled_blank(packs, labels):
    table = admitted.selected(*map(Artifact, packs), "unlabeled")
    stored = lines.read_table(Artifact(labels), lines.shards(Artifact(packs[0]), "unlabeled")[0])
    with pytest.raises(ValueError, match="has no label: lines were forgotten while training ran; run pretrain again"):
        stored_labels.LabelledLines(Artifact(packs[0]), table, CONFIG.data, stored.slice(1))


@pytest.mark.parametrize("elsewhere", [{"RAY_ADDRESS": "10.0.0.1:6379"}, {"MASKOCR_STORE": "s3://lines"}])
def test_on_a_cluster_labels_are_made_as_lines_are_met(book, elsewhere, monkeypatch):
    assert stored_labels.pay(CONFIG, contextual(book), 8)
    monkeypatch.setenv(*elsewhere.popitem())
    assert not stored_labels.pay(CONFIG, contextual(book), 8)


def test_it_pays_for_an_encoder_and_lines_that_are_met_at_least_once(book):
    described = contextual(book)
    assert stored_labels.pay(CONFIG, described, 16 * 8) and not stored_labels.pay(CONFIG, described, 16 * 8 + 1)
    assert not stored_labels.pay(CONFIG, book, 16)
    pixels = config.load("smoke", ["pretrain.steps=16", "mask.predict=pixels"])
    assert not stored_labels.pay(pixels, described, 16)


def test_pretrain_stores_them_by_itself_and_counts_what_they_cost(packs, tmp_path, capsys, monkeypatch):
    store = stored_labels.store
    monkeypatch.setattr(stored_labels, "store", lambda *call: (store(*call)[0], 6000.0))
    settings = config.load("smoke", ["pretrain.workers=0", "pretrain.steps=40", "codebook.features=encoder"])
    given = {"lines": packs[0], "selection": packs[1]}
    encoder = checkpoint.new_encoder(settings.model, settings.data.height)
    checkpoint.save_encoder(encoder, settings.model, settings.data, tmp_path / "given")
    artifacts.finish(tmp_path / "given", kind="encoder", config={}, metrics={})
    stages.get("quantize")(
        settings, **given, encoder_uri=str(tmp_path / "given"), codebook_out=tmp_path / "encoder-codebook"
    )
    figures = stages.get("pretrain")(
        settings, **given, codebook=tmp_path / "encoder-codebook", encoder_out=tmp_path / "encoder"
    )
    assert "labels 150 lines once" in capsys.readouterr().out
    assert np.isfinite(figures["masked_loss"]) and figures["cpu_minutes"] > 100
