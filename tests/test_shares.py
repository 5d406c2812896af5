"""Shares of a batch: what a step does hangs on the step alone, not on how many workers make it."""

from itertools import count
from pathlib import Path

import packed
import pytest
import torch
from two_trainers import train

from maskocr_core import config
from maskocr_core.config import Training
from maskocr_core.data import batches
from maskocr_core.data.batches import Batch
from maskocr_core.training import checkpoint, lineage, shares
from maskocr_core.training.checkpoints import Checkpoints
from maskocr_core.training.exchange import Place, Workers
from maskocr_core.training.loop import fit

SETTINGS = [
    "pretrain.steps=12",
    "pretrain.checkpoint_every=4",
    "pretrain.batch=8",
    "pretrain.shares=4",
    "model.dropout=0.1",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    lines = packed.pack(folder, {"unlabeled": packed.short_lines(24, seed=0, length=(2, 12))})
    packed.quantized(folder / "codebook", lines, config.load("smoke"))
    return folder


@pytest.fixture(scope="module")
def alone(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    assert train(root, folder, 1, SETTINGS) == [0]
    return folder


def rows(folder):
    """The log but its times."""
    from maskocr_core.training.log import TrainingLog

    times = ("lines_per_second", "data_wait")
    return [{k: v for k, v in row.items() if k not in times} for row in TrainingLog(folder / "log.jsonl").rows()]


def assert_the_same(folder, alone):
    encoder = "encoder/encoder.safetensors"
    assert (folder / encoder).read_bytes() == (alone / encoder).read_bytes()
    for row, expected in zip(rows(folder), rows(alone), strict=True):
        assert row == pytest.approx(expected, abs=2e-6)
    assert lineage.final(folder / "steps") == lineage.final(alone / "steps")


@pytest.mark.parametrize("world", [4])
def test_any_number_of_workers_gives_the_same_weights_to_the_bit(root, alone, tmp_path, world):
    assert train(root, tmp_path / "run", world, SETTINGS) == [0] * world
    assert_the_same(tmp_path / "run", alone)


@pytest.mark.parametrize("before, after", [(2, 1)])
def test_a_training_that_dies_goes_on_with_another_number_of_workers_to_the_bit(root, alone, tmp_path, before, after):
    codes = train(root, tmp_path / "run", before, SETTINGS, dies=7)
    assert set(codes) <= {-9, 2} and -9 in codes  # who is left without the other ends, too
    assert train(root, tmp_path / "run", after, SETTINGS) == [0] * after
    rows = lineage.rows(tmp_path / "run/steps")
    assert {row["attempt"] for row in rows if row["step"] == 4} == {1, 2}
    assert {row["attempt"] for row in rows if row["step"] == 11} == {2}
    assert_the_same(tmp_path / "run", alone)


def test_the_lines_of_the_final_lineage_are_those_of_the_plan_each_once(root, alone):
    settings = config.load("smoke", SETTINGS)
    source = packed.stream((root / "lines", root / "selection"), "unlabeled", settings.data)
    plan = batches.training(source, batch=8, seed=0)
    wanted = {step: sorted(next(plan).line_ids) for step in range(12)}
    assert lineage.final(alone / "steps") == wanted
    for epoch in range(4):
        drawn = [line for step in range(3 * epoch, 3 * epoch + 3) for line in wanted[step]]
        assert len(drawn) == len(set(drawn)) == 24


def test_a_loss_that_is_not_finite_is_said_by_every_worker_with_the_lines_of_whoever_had_them(root, tmp_path):
    settings = [*SETTINGS, "pretrain.learning_rate=1e30", "pretrain.clip=1e30", "pretrain.warmup=0"]
    assert train(root, tmp_path / "run", 2, settings) == [2, 2]
    first, second = ((tmp_path / f"run/said-{rank}").read_text() for rank in (0, 1))
    assert first == second and first.startswith("ValueError: the loss is ")
    assert f"the last good checkpoint is the start, as there is none in {tmp_path / 'run/checkpoints'} yet" in first


def batch(widths):
    """Lines of given widths in steps of 8 px, each pixel the number of its line."""
    longest = max(widths) + -max(widths) % 8
    valid = torch.arange(longest)[None] < torch.tensor(widths)[:, None]
    ink = torch.arange(len(widths), dtype=torch.float32)[:, None, None, None].expand(-1, 1, 32, longest * 8)
    ink = ink * valid.repeat_interleave(8, 1)[:, None, None]
    names = [str(number) for number in range(len(widths))]
    return Batch(ink, valid, names, names)


def test_a_share_is_every_nth_line_cut_to_its_own_width():
    parts = shares.split(batch([3, 30, 9, 2, 8]), 4)
    assert [part.line_ids for part in parts] == [["0", "4"], ["1"], ["2"], ["3"]]
    assert [part.valid.shape[1] for part in parts] == [8, 30, 10, 2] == [part.ink.shape[3] // 8 for part in parts]
    assert parts[1].valid.sum() == 30 and parts[1].ink.max() == 1


def test_the_share_of_a_worker_is_the_same_whatever_its_batch_is_padded_to():
    whole = batch([3, 30, 9, 2])
    own = Batch(whole.ink[1::2], whole.valid[1::2], whole.line_ids[1::2], whole.texts[1::2])
    for mine, expected in zip(shares.split(own, 2), (shares.split(whole, 4)[1], shares.split(whole, 4)[3])):
        assert torch.equal(mine.ink, expected.ink) and torch.equal(mine.valid, expected.valid)


class Reading(torch.nn.Module):
    """A loss that is the mean over lines of something that their ink and nothing else decides; `unused` is in no loss."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = torch.nn.Parameter(torch.tensor([0.3, -0.2])), torch.nn.Parameter(torch.ones(1))

    def forward(self, batch, progress=0.0):
        level = batch.ink.amax((1, 2, 3)).to(self.used.dtype)
        loss = (self.used[0] * level + self.used[1] * level.sin()).square().mean()
        return loss, {"loss": loss.detach()}


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_the_gradient_of_all_shares_is_that_of_the_whole_batch_though_they_are_of_unequal_size(count):
    model, whole = Reading().double(), batch([3, 30, 9, 2, 8])
    (expected,) = torch.autograd.grad(model(whole)[0], model.used)
    sums = shares.gradient(model, model, shares.split(whole, count), Workers(), seed=0)
    assert torch.allclose(model.used.grad, expected, rtol=1e-12)
    assert model.unused.grad is None
    assert sums.lines == 5 and sums.figures["loss"].item() / 5 == pytest.approx(model(whole)[0].item(), rel=1e-12)


def test_each_share_draws_from_a_generator_of_its_own():
    class Draws(Reading):
        def forward(self, batch, progress=0.0):
            self.drawn[batch.line_ids[0]] = torch.rand(()).item()
            return super().forward(batch)

    seen = []
    for world in (1, 2):
        model, seen_now = Draws(), {}
        for rank in range(world):
            model.drawn = seen_now
            own = batch([8] * 4)
            own = Batch(own.ink[rank::world], own.valid[rank::world], own.line_ids[rank::world], own.texts[rank::world])
            parts = shares.split(own, 4 // world)
            shares.gradient(model, model, parts, Workers(Place(rank, world)), seed=640)
        seen.append(seen_now)
    assert seen[0] == seen[1] and len(set(seen[0].values())) == 4


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"shares": 3}, "pretrain.shares=3 is no power of two"),
        ({"shares": 2, "workers": 4}, "pretrain.workers=4 does not divide pretrain.shares=2: set pretrain.shares"),
        ({"shares": 4, "workers": 3}, "pretrain.workers=3 does not divide pretrain.shares=4"),
    ],
)
def test_shares_that_cannot_be_added_pairwise_or_dealt_evenly_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Training(**settings)


def test_lines_of_steps_are_written_on_demand_alone(tmp_path):
    four = batch([8] * 4)
    fit(Reading(), lambda *_: (four for _ in count()), Training(steps=2), Checkpoints(tmp_path / "kept"))
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["kept"]
    assert checkpoint.load_tensors(next((tmp_path / "kept").glob("*.safetensors")))["model.used"].shape == (2,)
