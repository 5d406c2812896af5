"""What workers of a training add up: the same sum for all, to the bit, whichever way it takes."""

import os
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from maskocr_core.training import exchange
from maskocr_core.training.exchange import Exchange, Place

SIZES, ROUNDS = (3, 500, 41), 5


def given(rank, number):
    """The pieces that a worker gives at one of its calls; sums of these hang on the order of adding."""
    random = np.random.default_rng([rank, number])
    return [torch.from_numpy((random.normal(size=size) * 10.0 ** random.integers(-4, 4)).astype("f")) for size in SIZES]


def added(world, number):
    """The sum in the order of the tree: workers that are half of all apart meet first."""
    sums = [torch.cat(given(rank, number)) for rank in range(world)]
    while len(sums) > 1:
        half = len(sums) // 2
        sums = [one + other for one, other in zip(sums[:half], sums[half:])]
    return sums[0].numpy()


def totals(world, folder, prepare=lambda rank: None):
    """(the sums that each worker came to, the way that each took), of workers in processes of their own."""
    (folder / "shared").mkdir()
    fork = get_context("fork").Process
    workers = [fork(target=_work, args=(rank, world, folder, prepare), daemon=True) for rank in range(world)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * world
    return [np.load(folder / f"{rank}.npy") for rank in range(world)], {
        (folder / f"{rank}.way").read_text() for rank in range(world)
    }


def _work(rank, world, folder, prepare):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    exchange.SHARED = folder / "shared"
    prepare(rank)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    together = Exchange(Place(rank, world))
    sums = [together.total(given(rank, number)).numpy().copy() for number in range(ROUNDS)]
    np.save(folder / f"{rank}.npy", np.stack(sums))
    (folder / f"{rank}.way").write_text(type(together._way).__name__)
    os._exit(0)


def on_another_machine(rank):
    if rank == 1:
        exchange._reserved = lambda path, size: True  # it says a name, and the file is not here


def without_room(rank):
    if rank == 1:
        exchange.SHARED = Path("/nowhere")


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize(
    "prepare, way", [(lambda rank: None, "_Shared"), (on_another_machine, "_Sent"), (without_room, "_Sent")]
)
def test_every_worker_has_the_sum_of_the_tree_to_the_bit_whichever_way_it_takes(tmp_path, world, prepare, way):
    sums, ways = totals(world, tmp_path, prepare)
    assert ways == {way}
    for own in sums:
        for number, row in enumerate(own):
            assert np.array_equal(row, added(world, number))
    assert not list((tmp_path / "shared").iterdir()), "nothing is left where all workers look"


def test_the_sums_of_these_numbers_hang_on_the_order():
    """Or the test above would prove nothing."""
    in_turn = sum(torch.cat(given(rank, 0)) for rank in range(4)).numpy()
    assert not np.array_equal(in_turn, added(4, 0)) and np.allclose(in_turn, added(4, 0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("world, rank, partners", [(1, 0, []), (2, 1, [0]), (4, 1, [3, 0]), (8, 6, [2, 4, 7])])
def test_partners_come_nearer_by_half_each_time(world, rank, partners):
    assert list(Place(rank, world).partners()) == partners
