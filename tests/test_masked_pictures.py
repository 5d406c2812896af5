"""What a person sees of pre-training: pictures at the looks, portraits of the labels, the probe's readings."""

import json

import numpy as np
import packed
import pytest
import torch
from PIL import Image

from maskocr_core import config, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.config import STEP
from maskocr_core.data.batches import Batch
from maskocr_core.model import step_features
from maskocr_core.model.codebook import Codebook
from maskocr_core.model.encoder import Encoder
from maskocr_core.training import pictures, probing
from maskocr_core.training.objectives import MaskedPrediction

SETTINGS = config.load("smoke", ["pretrain.probe_labels=8", "pretrain.steps=16"])


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """(folder of a codebook, folder of an encoder) as the stages leave them, with the lines they were made of."""
    folder = tmp_path_factory.mktemp("road")
    short = packed.short_lines
    lines = packed.pack(folder, {split: short(16, seed=n) for n, split in enumerate(("unlabeled", "train", "val"))})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKOCR_WORK", str(folder / "stages"))
        quantize, pretrain = stages.get("quantize"), stages.get("pretrain")
        quantize(SETTINGS, lines=lines[0], selection=lines[1], codebook_out=folder / "codebook")
        figures = pretrain(
            SETTINGS,
            lines=lines[0],
            selection=lines[1],
            codebook=folder / "codebook",
            encoder_out=folder / "encoder",
        )
    return folder, figures


def test_a_picture_is_made_at_eight_looks_and_its_lines_are_listed_for_erasure(road):
    made = sorted(path.name for path in (road[0] / "encoder/pictures").glob("step-*.png"))
    assert made == [f"step-{step:08d}.png" for step in range(2, 17, 2)]
    shown = json.loads((road[0] / "encoder/shown.json").read_text())
    assert set(shown) == {f"pictures/{name}" for name in made}
    ids = {line for lines in shown.values() for line in lines}
    assert len(ids) == 4
    with Image.open(road[0] / "encoder/pictures" / made[0]) as picture:
        assert picture.width > 64 and picture.height > 4 * 3 * SETTINGS.data.height


def test_the_probe_reads_at_every_look_and_its_figure_is_in_the_log_and_the_metrics(road):
    folder, figures = road
    rows = [json.loads(row) for row in (folder / "encoder/log.jsonl").read_text().splitlines() if row]
    assert 0 < figures["probe_cer"] <= 1.5
    assert all("probe_cer" in row for row in rows[1:]) and rows[-1]["probe_cer"] == figures["probe_cer"]


def test_a_probe_without_labelled_lines_is_refused_with_the_mend(tmp_path):
    lines = packed.pack(tmp_path, {"unlabeled": packed.short_lines(16, seed=0)})
    packed.quantized(tmp_path / "codebook", lines, SETTINGS)
    with pytest.raises(ValueError, match=r"pretrain.probe_labels=8 asks for labelled .* set it to 0"):
        stages.get("pretrain")(
            SETTINGS,
            lines=lines[0],
            selection=lines[1],
            codebook=tmp_path / "codebook",
            encoder_out=tmp_path / "encoder",
        )


def test_the_codebook_shows_its_labels(road):
    with Image.open(road[0] / "codebook/codebook.png") as picture:
        assert np.asarray(picture).std() > 5
    assert "codebook.png" in Artifact(road[0] / "codebook").names()


def objective(predict="labels"):
    torch.manual_seed(0)
    portraits = torch.zeros(4, 32, 16)
    portraits[:, :, 4:12] = torch.linspace(0, 1, 4)[:, None, None]
    codebook = Codebook(
        32, step_features.Pixels(16), torch.zeros(512), torch.randn(3, 512), torch.randn(4, 3), portraits
    )
    mask = config.Mask(start=0.5, end=0.5, predict=predict)
    return MaskedPrediction(Encoder(32, 32, 1, 2, "linear", 0.0), codebook, mask)


@pytest.mark.parametrize("predict", ["labels", "pixels"])
def test_a_picture_leaves_the_model_and_its_chance_as_they_were(predict):
    masked, ink = objective(predict).train(), torch.rand(2, 1, 32, 10 * STEP)
    batch = Batch(ink, torch.ones(2, 10, dtype=torch.bool), ["a", "b"], ["", ""])
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    picture, right = pictures.of_lines(masked, batch, 0.5, seed=1)
    assert torch.equal(torch.rand(3), expected) and masked.training
    assert 0 <= right <= 1
    again, _ = pictures.of_lines(masked, batch, 0.5, seed=1)
    assert pictures.png(again) == pictures.png(picture)


def test_what_is_hidden_is_not_in_the_row_that_the_model_sees():
    masked, ink = objective(), torch.ones(1, 1, 32, 12 * STEP)
    batch = Batch(ink, torch.ones(1, 12, dtype=torch.bool), ["a"], [""])
    picture = np.asarray(pictures.of_lines(masked, batch, 0.5, seed=1)[0])
    line, seen = picture[28:60, 8:-8], picture[64:96, 8:-8]
    hidden = (seen == np.array(pictures.HIDDEN)).all((0, 2))
    assert (line == 0).all() and (seen[:, ~hidden] == 0).all()
    assert 0 < hidden.sum() < 96 and not hidden.sum() % STEP


def test_the_probe_leaves_encoder_and_chance_alone_and_reads_what_is_written(tmp_path):
    settings = config.load("smoke")
    lines = packed.pack(tmp_path, {"train": packed.short_lines(12, seed=0)})
    source = packed.source(lines, "train", settings.data)
    torch.manual_seed(0)
    encoder = Encoder(settings.data.height, 64, 1, 2, "convolutional", 0.0).train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    cer = probing.validation_cer(encoder, source, source)
    assert torch.equal(torch.rand(3), expected) and encoder.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert cer < 0.9  # the lines that it learnt from: a linear layer finds some of their characters
