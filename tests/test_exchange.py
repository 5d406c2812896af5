"""What workers of a training do together: the same sums, norms and weights for all, to the bit, whichever way they take."""

import os
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from maskocr_core.services.workers import PeerLost
from maskocr_core.training import exchange
from maskocr_core.training.exchange import Place, Workers, among

SHAPES, ROUNDS = ((3,), (20, 25), (7, 6, 2), (41,), (1, 5), (300,)), 5
NEVER, BY_ONE = 3, 1  # the parameter that no loss hangs on, and the one that only a loss of rank 1 does
CLIP = 1000.0


def model():
    """Parameters, one with its dimensions in another order in memory, and their optimiser, which has made a step."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    parameters[2] = nn.Parameter(parameters[2].detach().permute(2, 0, 1).contiguous().permute(1, 2, 0))
    optimizer = torch.optim.AdamW(parameters, lr=0.1, fused=True)
    for number, one in enumerate(parameters):
        one.grad = None if number in (NEVER, BY_ONE) else torch.randn_like(one)
    optimizer.step()
    return parameters, optimizer


def given(rank, number):
    """The gradients that a worker has at one of its steps; sums of these hang on the order of adding."""
    random = np.random.default_rng([rank, number])
    drawn = [torch.from_numpy(random.normal(size=shape).astype("f")) for shape in SHAPES]
    mine = [10.0 ** random.integers(-4, 4) * one for one in drawn]
    return [None if at == NEVER or (at == BY_ONE and rank != 1) else one for at, one in enumerate(mine)]


def added(world, number, at):
    """The sum of a gradient in the order of the tree: workers that are half of all apart meet first."""
    sums = [given(rank, number)[at] for rank in range(world)]
    while len(sums) > 1:
        half = len(sums) // 2
        pairs = zip(sums[:half], sums[half:])
        sums = [other if one is None else one if other is None else one + other for one, other in pairs]
    return sums[0]


def step(workers, parameters, optimizer, gradients, lines):
    """What is had of the gradients, the norm of all of them, and then the update: as `loop` makes it."""
    totals, lines = workers.total(gradients, lines)
    kept = [None if one is None else one.clone() for one in totals]
    for parameter, total in zip(parameters, totals, strict=True):
        parameter.grad = None if total is None else total.div_(lines)
    norm = workers.norm([one.grad for one in parameters])
    nn.utils.clip_grads_with_norm_(parameters, CLIP, norm)
    optimizer.step()
    workers.updated()
    return {"totals": kept, "norm": norm, "weights": [one.detach().clone() for one in parameters]}


def alone(world):
    """What one worker makes of what `world` workers have."""
    (parameters, optimizer), lines = model(), world * (world + 1) // 2
    steps = []
    for number in range(ROUNDS):
        sums = [added(world, number, at) for at in range(len(SHAPES))]
        # In memory as backward passes have it: as the parameter lies.
        sums = [None if one is None else torch.empty_like(like).copy_(one) for one, like in zip(sums, parameters)]
        steps.append(step(Workers(), parameters, optimizer, sums, lines))
    return steps, optimizer.state_dict()["state"]


def together(world, folder, prepare=lambda rank: None):
    """What each worker made, in a process of its own: (its steps, the optimiser's state, the way that it took)."""
    (folder / "shared").mkdir()
    assert ended(_work, [(rank, world, folder, prepare) for rank in range(world)]) == [0] * world
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def ended(work, calls):
    """Exit codes of a process for each call."""
    fork = get_context("fork").Process
    processes = [fork(target=work, args=call, daemon=True) for call in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def joined(rank, world, folder, prepare=lambda rank: None):
    """(workers, parameters, optimizer) of a worker that has met the others."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    exchange.SHARED = folder / "shared"
    prepare(rank)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    parameters, optimizer = model()
    return among(Place(rank, world), parameters, optimizer), parameters, optimizer


def _work(rank, world, folder, prepare):
    workers, parameters, optimizer = joined(rank, world, folder, prepare)
    steps = [step(workers, parameters, optimizer, given(rank, number), rank + 1) for number in range(ROUNDS)]
    torch.save((steps, optimizer.state_dict()["state"], type(workers).__name__), folder / f"{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)


def on_another_machine(rank):
    if rank == 1:
        exchange._opened = lambda name, numbers: None  # it is told a name, and the file is not here


def without_room(rank):
    exchange.SHARED = Path("/nowhere")


WAYS = [(lambda rank: None, "_Shared"), (on_another_machine, "_Sent"), (without_room, "_Sent")]


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("prepare, way", WAYS)
def test_workers_come_to_the_weights_of_one_to_the_bit_whichever_way_they_take(tmp_path, world, prepare, way):
    made, (expected, state) = together(world, tmp_path, prepare), alone(world)
    assert {taken for _, _, taken in made} == {way}
    for number, wanted in enumerate(expected):
        for own, _, _ in made:
            assert torch.equal(own[number]["norm"], wanted["norm"])
            assert all(map(torch.equal, own[number]["weights"], wanted["weights"]))
        for at, sum_of_all in enumerate(wanted["totals"]):
            found = [own[number]["totals"][at] for own, _, _ in made if own[number]["totals"][at] is not None]
            assert len(found) == (0 if at == NEVER else 1 if way == "_Shared" else world)
            assert all(torch.equal(one, sum_of_all) for one in found)
    _, kept, _ = made[0]  # who writes checkpoints knows what all remember
    for at, wanted in state.items():
        assert all(torch.equal(kept[at][name], value) for name, value in wanted.items())
    assert not list((tmp_path / "shared").iterdir()), "nothing is left where all workers look"


def test_the_sums_of_these_numbers_hang_on_the_order_and_gradients_are_clipped_at_times():
    """Or the test above would prove less."""
    in_turn = sum(given(rank, 0)[5] for rank in range(4))
    assert not torch.equal(in_turn, added(4, 0, 5)) and torch.allclose(in_turn, added(4, 0, 5), rtol=1e-3, atol=1e-3)
    assert {bool(step["norm"] > CLIP) for step in alone(2)[0]} == {False, True}


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_each_parameter_is_updated_by_one_worker_and_all_have_about_as_much_to_do(world):
    parameters = [nn.Parameter(torch.zeros(size)) for size in (64, 1024, 1024, 64, 4096, 4096, 64) * 6]
    parts = [exchange._part(Place(rank, world), parameters) for rank in range(world)]
    assert [number for part in parts for number in part] == list(range(len(parameters)))
    loads = [sum(len(parameters[number]) for number in part) for part in parts]
    assert all(abs(load - sum(loads) / world) <= 4096 for load in loads)  # the largest that there is


def test_more_workers_than_parameters_leave_some_with_nothing_to_update():
    parts = [exchange._part(Place(rank, 8), [nn.Parameter(torch.zeros(5))]) for rank in range(8)]
    assert sorted(map(len, parts)) == [0] * 7 + [1]


def _met(rank, folder, how):
    """What became of rank 0, which waits for the other at the end of a step."""
    workers, _, _ = joined(rank, 2, folder)
    if rank == 1 and how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 1 and how == "left":
        workers.close()
    if rank == 1 and how != "in time":
        time.sleep(20 * exchange.AWAKE)
    if rank == 0 or how != "left":
        try:
            _, lines = workers.total(given(rank, 0), rank + 1)
            said = f"{lines:g} lines"
        except PeerLost as error:
            said = str(error)
        (folder / f"said-{rank}").write_text(said)
    if how in ("in time", "late"):
        torch.distributed.barrier()
    os._exit(0)


def test_memory_that_is_not_on_this_machine_is_not_made_here(tmp_path):
    assert exchange._opened(str(tmp_path / "memory"), 16) is None is exchange._opened("", 16)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["in time", "late", "killed", "left"])
def test_a_worker_that_is_late_is_waited_for_and_one_that_is_gone_is_not(tmp_path, how):
    (tmp_path / "shared").mkdir()
    codes = ended(_met, [(rank, tmp_path, how) for rank in range(2)])
    assert codes == [0, -signal.SIGKILL if how == "killed" else 0]
    gone = "another worker is gone (1 of 2 did not come to the end of its step)"
    assert (tmp_path / "said-0").read_text() == (gone if how in ("killed", "left") else "3 lines")


@pytest.mark.parametrize("world, rank, partners", [(1, 0, []), (2, 1, [0]), (4, 1, [3, 0]), (8, 6, [2, 4, 7])])
def test_partners_come_nearer_by_half_each_time(world, rank, partners):
    assert list(Place(rank, world).partners()) == partners
