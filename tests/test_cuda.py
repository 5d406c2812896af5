"""What a GPU must give beside a CPU. Skipped without one; what the loop asks of it is tested everywhere in test_device.py."""

import dataclasses
import json

import packed
import pytest
import rendered
import torch
from torch.nn.attention import varlen

from maskocr_core import config
from maskocr_core.artifacts import Artifact
from maskocr_core.model import attention
from maskocr_core.model.encoder import Block
from maskocr_core.training import checkpoint, codebooks, device, finetuning, objectives, pretraining
from maskocr_core.training.finetuning import Run
from maskocr_core.training.log import TrainingLog

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that PyTorch sees"),
]
GPU = torch.device("cuda")
SETTINGS = config.load(
    "smoke",
    [
        *("pretrain.steps=160", "pretrain.checkpoint_every=40", "model.width=64", "pretrain.learning_rate=3e-3"),
        *("sweep.steps=300", "codebook.window=16"),
    ],
)


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packs")
    sentences = [(None, rendered.line(rendered.words(number), seed=number)) for number in range(48)]
    four = packed.short_lines(4, seed=1)
    return packed.pack(folder, {"train": four, "val": four, "unlabeled": sentences})


@pytest.fixture(scope="module")
def book(packs, tmp_path_factory):
    return packed.quantized(tmp_path_factory.mktemp("book") / "codebook", packs, SETTINGS)


@pytest.fixture(scope="module")
def batch(packs):
    return packed.source(packs, "unlabeled", SETTINGS.data).collate(range(16))


@pytest.fixture
def objective(book):
    torch.manual_seed(0)
    encoder = checkpoint.new_encoder(SETTINGS.model, SETTINGS.data.height)
    return objectives.MaskedPrediction(encoder, codebooks.load(Artifact(book), SETTINGS.data), SETTINGS.mask)


def test_a_gpu_is_where_training_is_and_its_blocks_are_compiled(objective):
    assert device.here() == GPU
    device.prepared(objective, GPU)
    assert {parameter.device.type for parameter in objective.parameters()} == {"cuda"}
    assert all(block._compiled_call_impl for block in objective.modules() if isinstance(block, Block))


def test_a_line_has_the_same_labels_on_a_gpu_as_on_a_cpu(objective, batch):
    here = objective.codebook.labels(batch.ink, batch.valid)
    objective.to(GPU)
    there = objective.codebook.labels(*(tensor.to(GPU) for tensor in (batch.ink, batch.valid)))
    assert (there.cpu() == here)[batch.valid].float().mean() > 0.999  # a tie may fall otherwise


def test_the_encoder_says_the_same_on_a_gpu_in_float32_and_about_the_same_in_bfloat16_and_compiled(objective, batch):
    encoder = objective.model.encoder.eval()
    with torch.no_grad():
        wanted = encoder(batch.ink, batch.valid)[batch.valid]
        device.prepared(objective, GPU)
        ink, valid = batch.ink.to(GPU), batch.valid.to(GPU)
        exact = encoder(ink, valid)[valid].cpu()
        with device.precision(GPU):
            rough = encoder(ink, valid)[valid].float().cpu()
    assert torch.linalg.norm(exact - wanted) < 1e-3 * torch.linalg.norm(wanted)
    assert torch.linalg.norm(rough - wanted) < 3e-2 * torch.linalg.norm(wanted)


def test_in_bfloat16_attention_is_the_flash_kernel_and_in_float32_the_one_with_a_mask(objective, batch, monkeypatch):
    encoder, calls = objective.model.encoder.eval().to(GPU), []
    kernel = varlen.varlen_attn
    monkeypatch.setattr(varlen, "varlen_attn", lambda *given: calls.append(len(given)) or kernel(*given))
    ink, valid = batch.ink.to(GPU), batch.valid.to(GPU)
    attention._tried(GPU)  # which calls it too
    calls.clear()
    encoder(ink, valid)
    assert not calls
    with device.precision(GPU):
        encoder(ink, valid)
    assert len(calls) == len(encoder.blocks)


def test_a_gradient_in_bfloat16_points_where_that_in_float32_points(objective, batch):
    def gradient():
        torch.manual_seed(1)
        objective.zero_grad()
        loss, _ = objective(on_gpu, 0.5)
        loss.backward()
        return torch.cat(
            [parameter.grad.flatten() for parameter in objective.parameters() if parameter.grad is not None]
        )

    device.prepared(objective, GPU)
    on_gpu = device.moved(batch, GPU)
    exact = gradient()
    with device.precision(GPU):
        rough = gradient()
    assert rough.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact, rough, dim=0) > 0.99


def pretrain(packs, book, folder, settings=SETTINGS):
    pretraining.train(0, 1, settings, *packs, book, folder)
    return TrainingLog(folder / "log.jsonl").rows()


def test_pre_training_learns_and_goes_on_from_a_checkpoint(packs, book, tmp_path):
    rows = pretrain(packs, book, tmp_path / "whole")
    assert rows[-1]["masked_loss"] < 0.95 * rows[0]["masked_loss"]
    halfway = SETTINGS.pretrain.model_copy(update={"steps": 80})
    pretrain(packs, book, tmp_path / "resumed", SETTINGS.model_copy(update={"pretrain": halfway}))
    resumed = pretraining.train(0, 1, SETTINGS, *packs, book, tmp_path / "resumed")
    assert resumed["resumed_at"] == 80
    # Not to the bit: some kernels add in the order in which their threads come.
    assert resumed["masked_loss"] == pytest.approx(rows[-1]["masked_loss"], rel=0.2)


def test_what_was_trained_on_a_gpu_is_read_from_its_file_on_a_cpu(packs, book, tmp_path):
    pretrain(packs, book, tmp_path)
    weights = checkpoint.load_tensors(tmp_path / "encoder/encoder.safetensors")
    assert {(tensor.device.type, tensor.dtype) for tensor in weights.values()} == {("cpu", torch.float32)}


@pytest.mark.parametrize("decoder", ["ctc", "autoregressive"])
def test_four_lines_are_learnt_by_heart(packs, tmp_path, decoder):
    settings = SETTINGS.model_copy(update={"sweep": SETTINGS.sweep.model_copy(update={"decoder": decoder})})
    run = Run("scratch", ("train", "val"), 0, 3e-3, 0, settings.sweep.steps)
    made = finetuning.train(run, settings, *packs, tmp_path)
    assert made["validation_cer"]["all"] < 0.1
    assert json.loads((tmp_path / "result.json").read_text()) == made


def test_a_loss_that_is_not_finite_names_its_step_on_a_gpu_too(packs, book, tmp_path, monkeypatch):
    forward = objectives.MaskedPrediction.forward

    def broken(self, batch, progress):
        loss, figures = forward(self, batch, progress)
        return (loss * float("nan") if progress >= 0.5 else loss), figures

    monkeypatch.setattr(objectives.MaskedPrediction, "forward", broken)
    with pytest.raises(ValueError, match="at step 80 .* last good checkpoint"):
        pretrain(packs, book, tmp_path)


def test_every_tensor_of_a_batch_is_on_the_gpu(batch):
    moved = device.moved(batch, GPU)
    tensors = [value for field in dataclasses.fields(moved) if torch.is_tensor(value := getattr(moved, field.name))]
    assert len(tensors) == 2 and {tensor.device.type for tensor in tensors} == {"cuda"}
