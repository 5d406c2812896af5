from collections import Counter
from itertools import islice

import numpy as np
import packed
import pytest
import torch

from maskocr_core.artifacts import Artifact
from maskocr_core.config import STEP, Data
from maskocr_core.data import admitted, batches, decoded, images
from maskocr_core.data.decoded import Decoded
from maskocr_core.training import shares

DATA = Data(height=32)
LINES, BATCH = 128, 8  # 32 shards of 4 lines: two windows of row groups


def wide_lines(count, seed=0):
    """Grey lines of many widths; what stands on them is nobody's business here."""
    random = np.random.default_rng(seed)
    return [
        (str(number), random.integers(0, 255, (32, random.integers(3, 60) * STEP), np.uint8)) for number in range(count)
    ]


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    return packed.pack(tmp_path_factory.mktemp("even"), {"train": wide_lines(LINES)}, shard_lines=4)


@pytest.fixture(scope="module")
def weighted(tmp_path_factory):
    weight = lambda number: (1.0, 0.5, 0.1)[number % 3]  # noqa: E731
    return packed.pack(tmp_path_factory.mktemp("weighted"), {"train": wide_lines(LINES)}, shard_lines=4, weight=weight)


@pytest.fixture(scope="module")
def source(packs):
    return packed.source(packs, "train", DATA)


def drawn(stream, steps):
    return [identity for batch in islice(stream, steps) for identity in batch.line_ids]


def test_every_line_comes_once_an_epoch(source):
    ids = drawn(batches.training(source, batch=BATCH, seed=0), 3 * LINES // BATCH)
    for epoch in range(3):
        assert sorted(ids[epoch * LINES : (epoch + 1) * LINES]) == sorted(source.line_ids)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("selection", ["packs", "weighted"])
def test_a_stream_gives_the_very_batches_that_the_whole_set_in_memory_gives(request, selection, augment):
    packs = request.getfixturevalue(selection)
    streamed = batches.training(packed.stream(packs, "train", DATA), batch=BATCH, seed=4, augment=augment)
    whole = batches.training(packed.source(packs, "train", DATA), batch=BATCH, seed=4, augment=augment)
    for found, expected in islice(zip(streamed, whole), 2 * LINES // BATCH):
        assert found.line_ids == expected.line_ids and found.texts == expected.texts
        assert torch.equal(found.ink, expected.ink) and torch.equal(found.valid, expected.valid)


def test_a_stream_begun_at_a_later_step_decodes_nothing_of_the_windows_before(packs, monkeypatch):
    decoded = Counter()
    prepare = batches.images.prepare

    def counting(image, *arguments, **keywords):
        decoded["lines"] += 1
        return prepare(image, *arguments, **keywords)

    monkeypatch.setattr(batches.images, "prepare", counting)
    whole = drawn(batches.training(packed.stream(packs, "train", DATA), batch=BATCH, seed=3), 31)[30 * BATCH :]
    decoded.clear()
    assert drawn(batches.training(packed.stream(packs, "train", DATA), batch=BATCH, seed=3, first_step=30), 1) == whole
    assert decoded["lines"] == BATCH


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("fill", ["lines", "tokens"])
@pytest.mark.parametrize("selection", ["packs", "weighted"])
@pytest.mark.parametrize("done", [1, 8, 30, 31])
def test_a_stream_begun_with_a_bookmark_is_the_same_and_reads_no_window_before(
    request, monkeypatch, fill, augment, done, selection
):
    packs = request.getfixturevalue(selection)

    def stream(**place):
        source = packed.stream(packs, "train", DATA)
        return batches.training(source, batch=BATCH, seed=3, fill=fill, shares=2, augment=augment, **place)

    whole, read = list(islice(stream(), done + 20)), []
    for name in ("window", "weights_of"):
        ask = getattr(batches.Stream, name)
        monkeypatch.setattr(batches.Stream, name, lambda *given, ask=ask: read.append(given[1]) or ask(*given))
    again = stream(first_step=done, bookmark=whole[done - 1].bookmark)
    first = next(again)
    assert len(read) <= 3  # a window that is at its end, and the next one
    for expected, found in zip(whole[done:], [first, *islice(again, 19)], strict=True):
        assert found.line_ids == expected.line_ids and found.bookmark == expected.bookmark
        assert torch.equal(found.ink, expected.ink)


def test_a_stream_knows_how_many_lines_it_has_and_refuses_the_selection_of_other_lines(packs, tmp_path):
    assert len(packed.stream(packs, "train", DATA)) == LINES
    others = packed.pack(tmp_path, {"train": wide_lines(4, seed=1), "val": wide_lines(4, seed=2)})
    with pytest.raises(ValueError, match="selects lines that .* does not hold: run validate and fit again"):
        batches.Stream(Artifact(packs[0]), Artifact(others[1]), "train", DATA)


def test_lines_of_weight_zero_alone_are_refused_instead_of_sought_for_ever(tmp_path):
    nothing = packed.pack(tmp_path, {"train": wide_lines(4)}, weight=lambda number: 0.0)
    with pytest.raises(ValueError, match="every line has weight 0"):
        next(batches.training(packed.stream(nothing, "train", DATA), batch=2, seed=0))


def test_a_last_batch_that_is_not_full_is_topped_up_and_no_line_is_lost(source):
    steps = 2 * -(-64 // 7)  # two windows, in both of which 7 a batch leave a rest
    ids = Counter(drawn(batches.training(source, batch=7, seed=0), steps))
    assert set(ids) == set(source.line_ids)
    assert sum(ids.values()) == steps * 7 < LINES + 2 * 7


def test_few_lines_scattered_over_many_row_groups_fill_batches_without_coming_twice(tmp_path):
    sparse = packed.source(packed.pack(tmp_path, {"train": wide_lines(160)}, shard_lines=1), "train", DATA)
    drawn = islice(batches.training(sparse, batch=16, seed=0), 10)
    assert [len(set(batch.line_ids)) for batch in drawn] == [16] * 10


@pytest.mark.parametrize("read", [packed.source, packed.stream])
def test_a_few_lines_past_a_window_do_not_fill_a_batch_by_themselves(tmp_path, read):
    packs = packed.pack(tmp_path, {"train": wide_lines(17 * 4)}, shard_lines=4)  # a row group more than a window holds
    epoch = list(islice(batches.training(read(packs, "train", DATA), batch=BATCH, seed=0), 9))
    assert {line for batch in epoch for line in batch.line_ids} == set(packed.source(packs, "train", DATA).line_ids)
    assert min(len(set(batch.line_ids)) for batch in epoch) > BATCH / 2


@pytest.mark.parametrize("read", [packed.source, packed.stream])
def test_a_weight_below_one_is_how_often_a_line_is_drawn(tmp_path, read):
    weights = {0: 1.0, 1: 0.5, 2: 0.1}
    packs = packed.pack(tmp_path, {"train": wide_lines(60)}, weight=lambda number: weights[number % 3])
    some = packed.source(packs, "train", DATA)
    ids = Counter(drawn(batches.training(read(packs, "train", DATA), batch=4, seed=0), 400))
    share = {
        weight: sum(ids[line] for line, own in zip(some.line_ids, some.weights) if own == np.float32(weight))
        for weight in weights.values()
    }
    assert share[0.5] / share[1.0] == pytest.approx(0.5, abs=0.07)
    assert share[0.1] / share[1.0] == pytest.approx(0.1, abs=0.04)


def test_a_line_that_the_selection_leaves_out_never_comes(tmp_path):
    packs = packed.pack(tmp_path, {"train": wide_lines(12)})
    table = admitted.selected(*map(Artifact, packs), "train").slice(0, 5)
    few = batches.Lines(Artifact(packs[0]), table, DATA)
    assert set(drawn(batches.training(few, batch=4, seed=0), 50)) == set(table["line_id"].to_pylist())


def test_the_order_follows_the_seed_and_differs_from_epoch_to_epoch(source):
    steps = LINES // BATCH
    one, same, other = (drawn(batches.training(source, batch=BATCH, seed=seed), 2 * steps) for seed in (0, 0, 1))
    assert one == same != other
    assert one[:LINES] != one[LINES:]


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("first", [1, 11, 12, 30])
def test_a_stream_begun_at_a_later_step_is_the_same_stream(source, first, augment):
    whole = list(islice(batches.training(source, batch=BATCH, seed=3, augment=augment), first + 2))[first:]
    later = islice(batches.training(source, batch=BATCH, seed=3, augment=augment, first_step=first), 2)
    for expected, found in zip(whole, later, strict=True):
        assert found.line_ids == expected.line_ids and found.texts == expected.texts
        assert torch.equal(found.ink, expected.ink) and torch.equal(found.valid, expected.valid)


@pytest.mark.parametrize("world", [2, 4])
def test_workers_share_each_batch_and_no_line_comes_twice(source, world):
    steps = LINES // BATCH
    whole = [batch.line_ids for batch in islice(batches.training(source, batch=BATCH, seed=0), steps)]
    parts = [
        [
            batch.line_ids
            for batch in islice(batches.training(source, batch=BATCH, seed=0, rank=rank, world=world), steps)
        ]
        for rank in range(world)
    ]
    for step, ids in enumerate(whole):
        shares = [part[step] for part in parts]
        assert sorted(sum(shares, [])) == sorted(ids)
        assert len(set(sum(shares, []))) == BATCH and {len(share) for share in shares} == {BATCH // world}


def test_a_batch_that_workers_cannot_share_evenly_is_refused(source):
    with pytest.raises(ValueError, match="a batch of 8 lines cannot be shared evenly by 3 workers; make it a multiple"):
        next(batches.training(source, batch=8, seed=0, world=3))


def test_no_line_at_all_is_refused_with_where_to_look(source):
    nothing = batches.Lines(source.artifact, source.table.slice(0, 0), DATA)
    with pytest.raises(
        ValueError, match="there is no line to train on: see the verdicts of fit and the quarantine of validate"
    ):
        next(batches.training(nothing, batch=8, seed=0))


def test_lines_of_similar_width_meet_so_that_little_is_padding(source):
    bucketed = [batch.valid for batch in islice(batches.training(source, batch=BATCH, seed=0), 2 * LINES // BATCH)]
    random = np.random.default_rng(0).permutation(LINES).reshape(-1, BATCH)
    mixed = [source.collate(places).valid for places in random]
    padding, unsorted = (
        1 - sum(v.sum() for v in all_).item() / sum(v.numel() for v in all_) for all_ in (bucketed, mixed)
    )
    assert padding < 0.25 < 0.35 < unsorted


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("fill", [{"fill": "lines"}, {"fill": "tokens", "shares": 4}])
def test_of_a_few_hundred_lines_in_small_batches_less_than_a_twentieth_is_padding(tmp_path, augment, fill):
    random = np.random.default_rng(0)
    some = [(str(number), np.zeros((32, random.integers(50, 110) * STEP), np.uint8)) for number in range(400)]
    source = packed.source(packed.pack(tmp_path, {"train": some}), "train", DATA)
    stream = batches.training(source, batch=16, seed=0, augment=augment, **fill)
    valid = [batch.valid for batch in islice(stream, 3 * 25)]
    assert 1 - sum(one.sum() for one in valid) / sum(one.numel() for one in valid) < 0.05


@pytest.mark.parametrize("fill", ["lines", "tokens"])
def test_of_large_batches_too_less_than_a_twentieth_is_padding_since_a_share_has_neighbours_in_width(tmp_path, fill):
    random, count = np.random.default_rng(0), 8
    some = [(str(number), np.zeros((32, random.integers(20, 110) * STEP), np.uint8)) for number in range(1024)]
    packs = packed.pack(tmp_path, {"train": some})
    drawn = list(
        islice(batches.training(packed.stream(packs, "train", DATA), batch=128, seed=0, fill=fill, shares=count), 8)
    )
    parts = [[part.valid for part in shares.split(batch, count)] for batch in drawn]
    valid = [part for batch in parts for part in batch]
    assert 1 - sum(part.sum() for part in valid) / sum(part.numel() for part in valid) < 0.05
    assert 1 - sum(batch.valid.sum() for batch in drawn) / sum(batch.valid.numel() for batch in drawn) > 0.07
    for batch in parts:  # of two workers each has narrow and wide ones
        steps = [sum(int(part.sum()) for part in batch[worker::2]) for worker in (0, 1)]
        assert steps[0] == pytest.approx(steps[1], rel=0.05)


def test_a_batch_that_shares_do_not_divide_is_left_in_order_of_width(tmp_path):
    packs = packed.pack(tmp_path, {"train": wide_lines(12)})
    drawn = next(batches.training(packed.stream(packs, "train", DATA), batch=6, seed=0, shares=4))
    assert len(drawn.line_ids) == 6


def test_pixels_become_ink_and_what_is_beyond_a_line_is_white_and_not_valid(source):
    batch = source.collate(np.array([0, 1, 2]))
    assert batch.ink.shape[3] % batches.PAD_TO == 0 and batch.ink.shape[3] == batch.valid.shape[1] * STEP
    for row in range(3):
        pixels = source.pixels(row)
        assert batch.valid[row].sum() == -(-pixels.shape[1] // STEP)
        assert np.allclose(batch.ink[row, 0, :, : pixels.shape[1]], images.inked(pixels, DATA.ink), atol=1e-6)
        assert not batch.ink[row, 0, :, pixels.shape[1] :].any()


def test_reading_in_order_shows_each_line_once_and_as_it_is(source):
    seen = []
    for places, batch in source.in_order(10):
        assert batch.line_ids == [source.line_ids[place] for place in places]
        seen += batch.line_ids
    assert sorted(seen) == sorted(source.line_ids)


def test_reading_in_order_reads_each_row_group_once_however_many_there_are(packs, monkeypatch):
    read, images_of = Counter(), batches._images

    def counted(artifact, shard, group):
        read[shard, group] += 1
        return images_of(artifact, shard, group)

    monkeypatch.setattr(batches, "_images", counted)
    monkeypatch.setattr(batches, "WINDOW_GROUPS", 2)
    source = packed.source(packs, "train", DATA)
    seen = [identity for _, batch in source.in_order(10) for identity in batch.line_ids]
    assert sorted(seen) == sorted(source.line_ids)
    assert len(source.groups) > 4 and set(read.values()) == {1} and set(read) == set(source.groups)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("decoders", [1, 3])
def test_lines_decoded_ahead_make_the_same_batches(packs, decoders, augment):
    def stream(decoders):
        own = packed.stream(packs, "train", DATA)
        return batches.training(own, batch=BATCH, seed=1, augment=augment, first_step=5, decoders=decoders)

    for found, expected in islice(zip(stream(decoders), stream(0)), 2 * LINES // BATCH):
        assert found.line_ids == expected.line_ids
        assert torch.equal(found.ink, expected.ink) and torch.equal(found.valid, expected.valid)


def by_tokens(source, **settings):
    return batches.training(source, batch=BATCH, seed=0, fill="tokens", shares=2, **settings)


def test_batches_by_tokens_hold_about_as_many_steps_each_and_every_line_once_an_epoch(source):
    budget, seen, steps = BATCH * source.widths.mean() / STEP, Counter(), []
    stream = by_tokens(source)
    while sum(seen.values()) < LINES or not steps:
        batch = next(stream)
        seen.update(batch.line_ids)
        steps.append((len(batch.line_ids), len(batch.line_ids) * int(batch.valid.sum(1).max())))
    assert set(seen) == set(source.line_ids) and sum(seen.values()) <= LINES + 2 * 2  # two windows, each topped up
    assert {lines % 2 for lines, _ in steps} == {0} and len({lines for lines, _ in steps}) > 3
    assert all(tokens <= 1.1 * budget or lines == 2 for lines, tokens in steps)  # windows differ in their mean width
    full = [tokens for lines, tokens in steps if tokens > 0.6 * budget]
    assert len(full) >= 0.85 * len(steps)  # all but what is left at the end of each window


def test_a_stream_by_tokens_begun_at_a_later_step_is_the_same_stream(source):
    whole = drawn(islice(by_tokens(source), 11, 14), 3)
    assert drawn(by_tokens(source, first_step=11), 3) == whole


def test_what_cannot_be_kept_is_decoded_again_and_is_the_same(source):
    fresh = batches.Lines(source.artifact, source.table, DATA, Decoded(0))
    assert all(np.array_equal(fresh.pixels(place), source.pixels(place)) for place in range(5))
    assert fresh.pixels(0) is not fresh.pixels(0)


@pytest.fixture
def decodings(monkeypatch):
    """How often the image of each line was decoded."""
    prepare, times = images.prepare, Counter()

    def counted(image, *geometry, **options):
        times[image] += 1
        return prepare(image, *geometry, **options)

    monkeypatch.setattr(images, "prepare", counted)
    return times


def test_of_a_stream_that_fits_in_memory_each_line_is_decoded_once(packs, decodings):
    drawn(batches.training(packed.stream(packs, "train", DATA), batch=BATCH, seed=0), 3 * LINES // BATCH)
    assert len(decodings) == LINES and set(decodings.values()) == {1}


@pytest.mark.parametrize("enough", [8, 1000], ids=["told by a few", "told when it is full"])
def test_of_a_stream_that_does_not_fit_nothing_is_kept(packs, decodings, monkeypatch, enough):
    stream = packed.stream(packs, "train", DATA)
    whole = drawn(batches.training(stream, batch=BATCH, seed=0), 3 * LINES // BATCH)
    assert set(decodings.values()) == {1}
    monkeypatch.setattr(batches, "STREAM_BYTES", stream.decoded._bytes * 3 // 4)
    monkeypatch.setattr(decoded, "ENOUGH", enough)
    decodings.clear()
    small = packed.stream(packs, "train", DATA)
    assert drawn(batches.training(small, batch=BATCH, seed=0), 3 * LINES // BATCH) == whole
    assert set(decodings.values()) == {3} and not small.decoded._pixels
