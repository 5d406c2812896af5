"""The loop, its resume, and the numbers it must keep giving. `python tests/test_training.py` writes the golden losses anew."""

import json
import math
import tempfile
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import packed
import pytest
import rendered
import torch

from maskocr_core import artifacts, config
from maskocr_core.config import Training
from maskocr_core.data import batches
from maskocr_core.data.batches import Batch
from maskocr_core.model import codebook, step_features
from maskocr_core.training import checkpoint, codebooks, finetuning, loop, pretraining
from maskocr_core.training.checkpoints import Checkpoints
from maskocr_core.training.finetuning import Run
from maskocr_core.training.log import TrainingLog

GOLDEN = Path(__file__).parent / "golden_losses.json"
# Neither checkpoints nor validations fall together with the lines of the log, which come every ten steps.
SETTINGS = config.load(
    "smoke", ["pretrain.steps=24", "pretrain.checkpoint_every=7", "sweep.steps=24", "model.dropout=0.1"]
)
TIMES = ("lines_per_second", "data_wait", "cpu_seconds")


@dataclass(frozen=True)
class Ground:
    lines: Path
    selection: Path
    codebook: Path


def ground(folder):
    """Labelled words, unlabelled sentences, and a codebook of windows drawn by number: no library's k-means decides it.

    Clean print: a line is known by its bytes, and one pixel that another CPU blurs otherwise would change the order of lines.
    """
    sentences = [(None, rendered.line(rendered.words(number), seed=number, degrade=0)) for number in range(48)]
    packs = packed.pack(
        folder,
        {
            "train": packed.short_lines(40, seed=1, length=(3, 9), degrade=0),
            "val": packed.short_lines(8, seed=2, degrade=0),
            "unlabeled": sentences,
        },
        shard_lines=8,
    )
    random = torch.Generator().manual_seed(0)
    some = packed.source(packs, "unlabeled", SETTINGS.data).collate(range(8))
    pixels = step_features.windows(some.ink, 16)[some.valid]
    components = torch.linalg.qr(torch.randn(pixels.shape[1], 8, generator=random)).Q.T.contiguous()
    centroids = (pixels[torch.randperm(len(pixels), generator=random)[:16]] - pixels.mean(0)) @ components.T
    codebooks.save(
        codebook.Codebook(
            32, step_features.Pixels(16), pixels.mean(0), components, centroids, torch.rand(len(centroids), 32, 16)
        ),
        SETTINGS.data,
        folder / "codebook",
    )
    artifacts.finish(folder / "codebook", kind="codebook", config={}, metrics={})
    return Ground(*packs, folder / "codebook")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return ground(tmp_path_factory.mktemp("ground"))


def pretrain(here, folder, settings=SETTINGS):
    pretraining.train(0, 1, settings, here.lines, here.selection, here.codebook, folder)
    return folder / "encoder/encoder.safetensors"


def finetune(here, folder, settings=SETTINGS):
    finetuning.train(
        Run("scratch", ("train", "val"), 0, 1e-3, 0, settings.sweep.steps), settings, here.lines, here.selection, folder
    )
    return folder / "all/recognizer.safetensors"


objectives = pytest.mark.parametrize("train", [pretrain, finetune])


@pytest.fixture(scope="module")
def uninterrupted(here, tmp_path_factory):
    """Folders of one whole run of each objective."""
    folders = {train: tmp_path_factory.mktemp(train.__name__) for train in (pretrain, finetune)}
    for train, folder in folders.items():
        train(here, folder)
    return folders


class Stop(Exception):
    pass


@pytest.fixture
def stop_at(monkeypatch):
    """A function that lets the streams of batches end with `Stop` where the batch of a given step is due."""
    stream = batches.training

    def stopping(source, *, first_step=0, stop, **settings):
        yield from islice(stream(source, first_step=first_step, **settings), stop - first_step)
        raise Stop

    def set_stop(step):
        monkeypatch.setattr(
            batches,
            "training",
            stream if step is None else lambda source, **settings: stopping(source, stop=step, **settings),
        )

    return set_stop


def log(folder):
    return [
        {name: value for name, value in row.items() if name not in TIMES}
        for row in TrainingLog(folder / "log.jsonl").rows()
    ]


def last_weights(folder):
    tensors = checkpoint.load_tensors(max((folder / "checkpoints").glob("*.safetensors")))
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("file.")}  # times are in a log


def assert_equal_to_the_bit(folder, expected):
    found, wanted = last_weights(folder), last_weights(expected)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert log(folder) == log(expected) and [row["step"] for row in log(folder)] == [10, 20, 24]


@objectives
@pytest.mark.parametrize("stop", [5, 17])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(here, uninterrupted, stop_at, tmp_path, train, stop):
    stop_at(stop)
    with pytest.raises(Stop):
        train(here, tmp_path)
    assert not list(tmp_path.glob("encoder")) and not (tmp_path / "result.json").exists()
    stop_at(None)
    weights = train(here, tmp_path)
    assert_equal_to_the_bit(tmp_path, uninterrupted[train])
    assert weights.read_bytes() == (uninterrupted[train] / weights.relative_to(tmp_path)).read_bytes()


@objectives
def test_a_damaged_checkpoint_is_left_aside_and_the_one_before_is_used(
    here, uninterrupted, stop_at, tmp_path, train, capsys
):
    stop_at(20)
    with pytest.raises(Stop):
        train(here, tmp_path)
    before, newest = sorted((tmp_path / "checkpoints").glob("*.safetensors"))[-2:]  # the best may be an older one
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 255
    newest.write_bytes(content)
    capsys.readouterr()
    stop_at(int(before.stem.split("-")[1]))  # where it should go on from: it stops again without a step
    with pytest.raises(Stop):
        train(here, tmp_path)
    assert f"checkpoint {newest.name} is damaged and left aside" in capsys.readouterr().out
    stop_at(None)
    train(here, tmp_path)
    assert_equal_to_the_bit(tmp_path, uninterrupted[train])


def test_what_a_kill_left_half_written_is_ignored(here, uninterrupted, stop_at, tmp_path):
    stop_at(17)
    with pytest.raises(Stop):
        pretrain(here, tmp_path)
    kept = tmp_path / "checkpoints"
    (kept / ".step-00000021-1.safetensors.4242").write_bytes(b"half a checkp")
    (kept / ".index.json.4242").write_text('{"step": 21')
    (kept / "step-00000021-1.safetensors").write_bytes(b"whole, but nothing says so yet")
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 15, "masked_lo')
    (tmp_path / "log.jsonl").write_text((tmp_path / "log.jsonl").read_text() + "\n")
    stop_at(None)
    pretrain(here, tmp_path)
    assert_equal_to_the_bit(tmp_path, uninterrupted[pretrain])


def test_a_finished_run_is_not_made_again(here, uninterrupted, stop_at):
    stop_at(0)
    result = json.loads((uninterrupted[finetune] / "result.json").read_text())
    again = finetuning.train(
        Run("scratch", ("train", "val"), 0, 1e-3, 0, 24), SETTINGS, here.lines, here.selection, uninterrupted[finetune]
    )
    assert again == result and [step for step, _ in result["curve"]] == [6, 12, 18, 24]


class Breaks(torch.nn.Module):
    """An objective whose loss is not a number from a given step on."""

    def __init__(self, at, value):
        super().__init__()
        self.weight, self.at, self.value, self.calls = torch.nn.Parameter(torch.ones(2, 2)), at, value, 0

    def forward(self, batch, progress):
        self.calls += 1
        loss = self.weight.sum() * (self.value if self.calls > self.at else 1.0)
        return loss, {"loss": loss.detach()}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_step_lines_and_the_last_good_checkpoint(tmp_path, value):
    batch = Batch(torch.zeros(2, 1, 32, 8), torch.ones(2, 1, dtype=torch.bool), ["line-one", "line-two"], ["", ""])
    training = Training(steps=20, checkpoint_every=5, shares=1)
    with pytest.raises(ValueError) as refusal:
        loop.fit(Breaks(13, value), lambda *_: (batch for _ in count()), training, Checkpoints(tmp_path / "kept"))
    said = str(refusal.value)
    assert said.startswith(f"the loss is {value}") and "at step 13 (lines line-one, line-two" in said
    assert (
        f"the last good checkpoint is {tmp_path / 'kept'}/step-00000010-1.safetensors: lower the learning rate" in said
    )
    names = ["step-00000005-1.safetensors", "step-00000010-1.safetensors"]
    assert [entry["name"] for entry in json.loads((tmp_path / "kept/index.json").read_text())["checkpoints"]] == names


def test_the_learning_rate_rises_in_the_warm_up_and_falls_to_nothing():
    training = Training(steps=200, learning_rate=2e-3, warmup=0.1)
    rates = [loop.learning_rate(step, training) for step in range(200)]
    assert rates[:20] == pytest.approx([2e-3 * (step + 1) / 20 for step in range(20)])
    assert rates[19] == max(rates) == rates[20] == 2e-3
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[110] == pytest.approx(1e-3) and 0 < rates[-1] < 2e-7


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_a_schedule_without_or_of_nothing_but_warm_up_is_finite(warmup):
    training = Training(steps=10, learning_rate=1e-3, warmup=warmup)
    rates = [loop.learning_rate(step, training) for step in range(10)]
    assert all(0 < rate <= 1e-3 for rate in rates) and max(rates) == 1e-3


def test_weights_decay_on_matrices_only():
    matrices, rest = loop._groups(
        torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3)), Training(weight_decay=0.1)
    )
    assert (matrices["weight_decay"], len(matrices["params"])) == (0.1, 1)
    assert (rest["weight_decay"], len(rest["params"])) == (0.0, 3)


def smoke_losses(folder):
    """Losses along 30 steps of pre-training and of fine-tuning with the smoke recipe."""
    settings = config.load("smoke", ["pretrain.steps=30", "sweep.steps=30"])
    here = ground(folder)
    pretrain(here, folder / "pretrain", settings)
    finetune(here, folder / "finetune", settings)
    return {
        "pretrain": [
            [row["step"], row["masked_loss"], row["visible_loss"]]
            for row in TrainingLog(folder / "pretrain/log.jsonl").rows()
        ],
        "finetune": [[row["step"], row["loss"]] for row in TrainingLog(folder / "finetune/log.jsonl").rows()],
    }


def test_training_gives_the_golden_losses(tmp_path):
    golden, found = json.loads(GOLDEN.read_text()), smoke_losses(tmp_path)
    for objective, rows in golden.items():
        for expected, row in zip(rows, found[objective], strict=True):
            assert row == pytest.approx(expected, rel=1e-3), (
                f"{objective}: the losses at step {row[0]} are no longer those of {GOLDEN.name}. If the numerics were meant to change, "
                "run `python tests/test_training.py` and commit the file with one sentence of reason"
            )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        artifacts.write_json(GOLDEN, smoke_losses(Path(place)))
