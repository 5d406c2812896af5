"""Is it the method that helps? Controls on rendered lines, at a scale of seconds."""

from itertools import islice

import numpy as np
import packed
import pytest
import torch

from maskocr_core import artifacts, config
from maskocr_core.artifacts import Artifact
from maskocr_core.data import batches
from maskocr_core.model import masking
from maskocr_core.training import checkpoint, codebooks, finetuning, pretraining
from maskocr_core.training.checkpoints import Checkpoints
from maskocr_core.training.finetuning import Run
from maskocr_core.training.loop import fit
from maskocr_core.training.objectives import MaskedPrediction

SETTINGS = config.load(
    "smoke",
    [
        "model.width=64",
        "model.depth=2",
        "model.heads=4",
        "sweep.batch=16",
        "sweep.validations=4",
        "codebook.clusters=16",
        "pretrain.steps=12",
    ],
)
HELD_OUT = packed.short_lines(24, seed=2)


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """60 labelled lines of digits, 24 held out, 80 without text."""
    unlabelled = [(None, image) for _, image in packed.short_lines(80, seed=3)]
    return packed.pack(
        tmp_path_factory.mktemp("lines"),
        {"train": packed.short_lines(60, seed=1), "val": HELD_OUT, "unlabeled": unlabelled},
    )


@pytest.fixture(scope="module")
def codebook(lines, tmp_path_factory):
    return packed.quantized(tmp_path_factory.mktemp("codebook"), lines, SETTINGS)


def finetuned(lines, folder, *, steps, encoder=None, seed=0):
    run = Run("start", ("train", "val"), 0, 3e-3, seed, steps, encoder=str(encoder) if encoder else None)
    return finetuning.train(run, SETTINGS, *lines, folder)


def encoder_artifact(folder, seed):
    torch.manual_seed(seed)
    checkpoint.save_encoder(
        checkpoint.new_encoder(SETTINGS.model, SETTINGS.data.height), SETTINGS.model, SETTINGS.data, folder
    )
    artifacts.finish(folder, kind="encoder", config={}, metrics={})
    return folder


def test_held_out_lines_are_read_after_training_on_true_transcriptions_and_not_on_shuffled_ones(lines, tmp_path):
    known = packed.short_lines(60, seed=1)
    texts = np.random.default_rng(0).permutation([text for text, _ in known]).tolist()
    assert sum(text == true for text, (true, _) in zip(texts, known)) < 6
    shuffled = packed.pack(
        tmp_path / "shuffled", {"train": [(text, image) for text, (_, image) in zip(texts, known)], "val": HELD_OUT}
    )
    true = finetuned(lines, tmp_path / "true", steps=120)
    false = finetuned(shuffled, tmp_path / "false", steps=120)
    assert true["validation_cer"]["all"] < 0.5
    assert false["validation_cer"]["all"] > 0.7


def test_an_encoder_that_was_never_trained_is_as_good_as_scratch_and_no_better(lines, tmp_path):
    scratch = finetuned(lines, tmp_path / "scratch", steps=24, seed=5)
    untrained = finetuned(
        lines, tmp_path / "untrained", steps=24, seed=5, encoder=encoder_artifact(tmp_path / "own", seed=5)
    )
    other = finetuned(
        lines, tmp_path / "other", steps=24, seed=5, encoder=encoder_artifact(tmp_path / "another", seed=6)
    )
    assert (untrained["curve"], untrained["loss"]) == (scratch["curve"], scratch["loss"])
    assert other["loss"] != scratch["loss"]  # the encoder that is given is the one that is used


def pretrained(lines, codebook, folder):
    pretraining.train(0, 1, SETTINGS, *lines, codebook, folder)
    return checkpoint.load_tensors(folder / "encoder/encoder.safetensors")


def test_another_codebook_gives_another_encoder_and_the_same_one_the_same(lines, codebook, tmp_path):
    reseeded = SETTINGS.model_copy(update={"codebook": SETTINGS.codebook.model_copy(update={"seed": 1})})
    first, again = (pretrained(lines, codebook, tmp_path / name) for name in ("first", "again"))
    other = pretrained(lines, packed.quantized(tmp_path / "codebook", lines, reseeded), tmp_path / "other")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert sum(not torch.equal(first[name], other[name]) for name in first) > len(first) / 2


def test_hidden_labels_of_held_out_lines_are_guessed_better_than_by_their_frequency(lines, codebook, tmp_path):
    torch.manual_seed(0)
    encoder = checkpoint.new_encoder(SETTINGS.model, SETTINGS.data.height)
    objective = MaskedPrediction(encoder, codebooks.load(Artifact(codebook), SETTINGS.data), SETTINGS.mask)
    source = packed.source(lines, "unlabeled", SETTINGS.data)
    training = SETTINGS.pretrain.model_copy(
        update={"steps": 150, "batch": 32, "learning_rate": 2e-3, "checkpoint_every": 150}
    )
    fit(
        objective,
        lambda first, _: batches.training(source, batch=32, seed=0, first_step=first),
        training,
        Checkpoints(tmp_path / "checkpoints"),
    )

    objective.eval()
    held_out, right, sizes = packed.source(lines, "val", SETTINGS.data), 0.0, torch.zeros(16)
    for step, batch in enumerate(islice(batches.training(held_out, batch=24, seed=0), 8)):
        torch.manual_seed(step)
        with torch.no_grad():
            accuracy = objective(batch, 0.3)[1]["masked_accuracy"].item()
        torch.manual_seed(step)
        mask = masking.sample(
            batch.valid, masking.probability(0.3, SETTINGS.mask.start, SETTINGS.mask.end), SETTINGS.mask.span
        )
        right += accuracy * mask.sum().item()
        sizes += torch.bincount(objective.codebook.labels(batch.ink, batch.valid)[mask], minlength=16)
    accuracy, chance = right / sizes.sum().item(), (sizes.max() / sizes.sum()).item()
    assert accuracy > chance + 0.05
