"""Checkpoints of unfinished training: what counts, what survives, and who may write, on a disk and in S3."""

import json
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import packed
import pytest
import torch

from maskocr_core import artifacts, config, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.data import batches
from maskocr_core.erasure import forget
from maskocr_core.erasure.places import Places
from maskocr_core.services import storage
from maskocr_core.training.checkpoints import Checkpoints


def linear_and_optimizer(seed, outputs=2):
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, outputs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def saved(kept, *steps, figures=lambda step: {}):
    for step in steps:
        kept.save(step, *linear_and_optimizer(step), figures(step))
    kept.finish()
    return kept


def index(kept):
    with storage.open_input(f"{kept.uri}/index.json") as file:
        return json.loads(bytes(file.read()))


def steps(kept):
    """The steps of all checkpoints, each of which is there."""
    entries = index(kept)["checkpoints"]
    assert {entry["name"] for entry in entries} | {"index.json"} == {file.name for file in storage.files(kept.uri)}
    return [entry["step"] for entry in entries]


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.services)])
def place(request, tmp_path):
    """A function that makes checkpoints at the same place again and again, as processes after one another do."""
    store = ""
    if request.param == "s3":
        store = f"s3://{request.getfixturevalue('at_s3').buckets[0]}/{tmp_path.name}"
    return lambda **settings: Checkpoints(tmp_path / "checkpoints", store, **settings)


def test_training_goes_on_from_the_newest_checkpoint_and_only_two_are_kept(place):
    kept = saved(place(), 5, 10, 15)
    assert steps(kept) == [10, 15]
    model, optimizer = linear_and_optimizer(0)
    assert place().restore(model, optimizer) == (15, {})
    expected, expected_optimizer = linear_and_optimizer(15)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.state_dict().items())
    for number, state in expected_optimizer.state_dict()["state"].items():
        found = optimizer.state_dict()["state"][number]
        assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("figure", ["validation_cer", "probe_cer", "masked_loss"])
def test_the_best_checkpoint_is_kept_beside_the_last_two_and_the_newest_is_gone_on_from(place, figure):
    values = {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5, 5: 2.5}
    kept = saved(place(), *values, figures=lambda step: {"loss": -float(step), figure: values[step]})
    assert steps(kept) == [2, 4, 5]
    assert place().restore(*linear_and_optimizer(0))[0] == 5


def test_a_checkpoint_holds_the_weights_of_its_step_though_training_goes_on_meanwhile(place):
    model, optimizer = linear_and_optimizer(7)
    expected = model.weight.detach().clone()
    kept = place()
    kept.save(7, model, optimizer, {})
    with torch.no_grad():
        model.weight.zero_()
    kept.finish()
    found, found_optimizer = linear_and_optimizer(0)
    place().restore(found, found_optimizer)
    assert torch.equal(found.weight, expected)


def test_saving_does_not_wait_for_the_writing_and_no_two_are_written_at_once(tmp_path, monkeypatch):
    may_write, at_once, most = threading.Event(), [], []
    write = storage.put

    def slowly(uri, content):
        if uri.endswith(".safetensors"):
            at_once.append(uri)
            most.append(len(at_once))
            may_write.wait(10)
            at_once.remove(uri)
        write(uri, content)

    monkeypatch.setattr(storage, "put", slowly)
    kept = Checkpoints(tmp_path)
    kept.save(1, *linear_and_optimizer(1), {})
    assert index(kept)["checkpoints"] == []  # and yet save came back
    threading.Timer(0.05, may_write.set).start()
    saved(kept, 2, 3)
    assert steps(kept) == [2, 3] and max(most) == 1


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-9], lambda content: b"", lambda content: content[::-1], None]
)
def test_a_damaged_or_lost_checkpoint_is_left_aside_and_the_one_before_is_used(place, damage, capsys):
    kept = saved(place(), 5, 10)
    uri = f"{kept.uri}/{index(kept)['checkpoints'][-1]['name']}"
    if damage:
        with storage.open_input(uri) as file:
            content = bytes(file.read())
        storage.put(uri, damage(content))
    else:
        storage.erase(uri)
    again = place()
    again.begin()
    assert again.restore(*linear_and_optimizer(0))[0] == 5
    assert "checkpoint step-00000010-1.safetensors is damaged and left aside" in capsys.readouterr().out
    assert steps(saved(again, 10, 15)) == [10, 15]


def test_what_a_kill_left_half_written_is_swept_up_by_the_next_attempt(tmp_path):
    saved(Checkpoints(tmp_path), 5)
    before = {path.name for path in tmp_path.iterdir()}
    (tmp_path / ".step-00000010-1.safetensors.4711").write_bytes(b"half")
    again = Checkpoints(tmp_path)
    again.begin()
    assert again.restore(*linear_and_optimizer(0))[0] == 5
    assert {path.name for path in tmp_path.iterdir()} == before


def test_the_index_is_read_whole_while_it_is_being_replaced(place):
    kept, done = saved(place(), *range(1, 4)), threading.Event()

    def ask():
        asked = 0
        while not done.is_set():
            kept.demand_alone(9)
            asked += 1
        return asked

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        for step in range(4, 24):
            saved(kept, step, figures=lambda step: {"note": "x" * (step % 3 * 400)})
        done.set()
        assert asking.result() > 3


@pytest.mark.parametrize("asked", ["exists", "content"])
def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_a_damaged_one(place, asked, monkeypatch):
    kept = saved(place(), 5, 10)
    before, ask = index(kept), getattr(storage, asked)

    def out_of_order(uri):
        if "step-" in uri:
            raise ValueError(f"{uri}: cannot be opened (503 Slow Down)")
        return ask(uri)

    again = place()
    again.begin()
    with monkeypatch.context() as patch:
        patch.setattr(storage, asked, out_of_order)
        with pytest.raises(
            RuntimeError, match=r"step-00000010-1\.safetensors cannot be read now \(.*503.*\): run again"
        ):
            again.restore(*linear_and_optimizer(0))
    assert index(kept)["checkpoints"] == before["checkpoints"] and steps(kept) == [5, 10]
    assert place().restore(*linear_and_optimizer(0))[0] == 10


def test_what_no_index_names_is_neither_used_nor_kept(place):
    kept = saved(place(), 5)
    storage.put(f"{kept.uri}/step-00000010-1.safetensors", b"whole, but nothing says so yet")
    again = place()
    again.begin()
    assert again.restore(*linear_and_optimizer(0))[0] == 5 and steps(again) == [5]


def test_there_is_nothing_to_go_on_from_in_an_empty_place(place):
    assert place().restore(*linear_and_optimizer(0)) == (0, {})


def test_an_earlier_attempt_that_still_lives_is_refused_and_what_the_later_one_wrote_stays(place):
    stale, later = saved(place(), 5), place()
    later.begin()
    saved(later, 10)
    stale.save(10, *linear_and_optimizer(99), {"loss": 0.0})
    with pytest.raises(
        RuntimeError, match=r"^attempt 1 .* refused its checkpoint of step 10: attempt 2 has begun at .* alone$"
    ):
        stale.finish()
    assert steps(later) == [5, 10]
    model, optimizer = linear_and_optimizer(0)
    assert place().restore(model, optimizer)[0] == 10
    assert torch.equal(model.weight, linear_and_optimizer(10)[0].weight)


def test_an_attempt_is_told_that_another_has_begun_before_it_writes_anything(place):
    stale, later = saved(place(), 5), place()
    stale.demand_alone(10)
    later.begin()
    with pytest.raises(RuntimeError, match="attempt 1 .* refused its checkpoint of step 10: attempt 2 has begun"):
        stale.demand_alone(10)
    later.demand_alone(10)
    storage.put(f"{later.uri}/index.json", b"{")
    with pytest.raises(RuntimeError, match="is damaged.*the checkpoint of step 15 could not be written; the last good"):
        later.demand_alone(15)


def test_of_two_attempts_that_begin_and_save_together_one_wins_and_the_other_is_refused(place):
    first, second = place(), place()
    ready = threading.Barrier(2, timeout=60)
    refused = []

    def attempt(kept):
        ready.wait()
        kept.begin()
        ready.wait()
        try:
            saved(kept, 5, 10)
        except RuntimeError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=attempt, args=(kept,)) for kept in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {first.attempt, second.attempt} == {1, 2} and len(refused) == 1 and "attempt 1" in refused[0]
    assert steps(first) == [5, 10] and {entry["name"][-13] for entry in index(first)["checkpoints"]} == {"2"}


def test_an_attempt_that_is_slow_to_begin_takes_nothing_from_the_one_that_began_since(place, monkeypatch):
    slow, later = place(), place()
    sweep = storage.erase_below

    def meanwhile(uri, **which):
        monkeypatch.setattr(storage, "erase_below", sweep)
        saved(later, 5)
        if not storage.is_remote(uri):  # what `later` is just about to write
            (Path(uri) / ".step-00000010-2.safetensors.1").touch()
            (Path(uri) / ".index.json.1").touch()
        sweep(uri, **which)

    monkeypatch.setattr(storage, "erase_below", meanwhile)
    slow.begin()
    assert (slow.attempt, later.attempt) == (1, 2) and steps(later) == [5]
    if not storage.is_remote(later.uri):
        assert len(list(Path(later.uri).glob(".*.1"))) == 2
    saved(place(), 15)
    assert not list(Path(later.uri).glob(".*.1"))


def test_files_and_folders_beside_a_training_come_back_with_its_checkpoint_and_none_is_written_over(tmp_path):
    beside = tmp_path / "log.jsonl", tmp_path / "pictures"
    beside[0].write_text("row")
    artifacts.write_bytes(beside[1] / "step-1.png", b"\x89PNG")
    saved(Checkpoints(tmp_path / "checkpoints", beside=beside), 5)
    beside[0].write_text("row and more")
    (beside[1] / "step-1.png").unlink()
    assert Checkpoints(tmp_path / "checkpoints", beside=beside).restore(*linear_and_optimizer(0))[0] == 5
    assert beside[0].read_text() == "row and more" and (beside[1] / "step-1.png").read_bytes() == b"\x89PNG"


@pytest.mark.services
def test_a_fresh_machine_goes_on_from_the_store_and_gets_log_and_pictures_back(at_s3, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKOCR_STORE", f"s3://{at_s3.buckets[0]}/lines")
    uris = []
    for machine in ("first", "second"):
        monkeypatch.setenv("MASKOCR_WORK", str(tmp_path / machine))
        folder = tmp_path / machine / "pretrain/abcd/scratch"
        folder.mkdir(parents=True)
        beside = folder / "log.jsonl", folder / "pictures"
        kept = Checkpoints(folder / "checkpoints", artifacts.in_store(folder / "checkpoints"), beside)
        uris.append(kept.uri)
        if machine == "first":
            artifacts.write_bytes(folder / "pictures/step-1.png", b"\x89PNG")
            (folder / "log.jsonl").write_text('{"step": 5}\n')
            saved(kept, 5)
    assert uris[0] == uris[1] == f"s3://{at_s3.buckets[0]}/lines/unfinished/pretrain/abcd/scratch/checkpoints"
    assert kept.restore(*linear_and_optimizer(0))[0] == 5
    assert (folder / "log.jsonl").read_text() == '{"step": 5}\n'
    assert (folder / "pictures/step-1.png").read_bytes() == b"\x89PNG"


@pytest.mark.services
def test_a_pretraining_goes_on_in_a_fresh_pod_and_leaves_nothing_unfinished_in_the_store(at_s3, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKOCR_STORE", store := f"s3://{at_s3.buckets[1]}/pods")
    settings = config.load("smoke", ["pretrain.workers=0", "pretrain.steps=12", "pretrain.checkpoint_every=5"])
    lines = packed.pack(tmp_path, {"unlabeled": packed.short_lines(16, seed=0)})
    packed.quantized(tmp_path / "codebook", lines, settings)
    drawn = batches.training

    def until_the_pod_goes(source, **others):
        yield from islice(drawn(source, **others), 8)
        raise KeyboardInterrupt

    def pretrain(pod):
        monkeypatch.setenv("MASKOCR_WORK", str(tmp_path / pod))
        inputs = {name: tmp_path / name for name in ("lines", "selection", "codebook")}
        return stages.get("pretrain")(settings, **inputs, encoder_out=tmp_path / f"{pod}-encoder")

    with monkeypatch.context() as patch:
        patch.setattr(batches, "training", until_the_pod_goes)
        with pytest.raises(KeyboardInterrupt):
            pretrain("first")
    assert storage.holds(f"{store}/unfinished/pretrain")
    assert pretrain("second")["resumed_at"] == 5
    assert not storage.holds(f"{store}/unfinished")
    assert pretrain("undisturbed")["resumed_at"] == 0
    resumed, whole = (Artifact(tmp_path / f"{pod}-encoder") for pod in ("second", "undisturbed"))
    assert resumed.read_bytes("encoder.safetensors") == whole.read_bytes("encoder.safetensors")
    assert resumed.names("pictures/") == whole.names("pictures/") and "pictures/step-00000005.png" in whole.names()
    assert resumed.read_json("shown.json") == whole.read_json("shown.json")


@pytest.mark.services
def test_whoever_forgets_removes_the_checkpoints_in_the_store_and_the_training_that_wrote_them_is_refused(
    at_s3, tmp_path, monkeypatch
):
    monkeypatch.setenv("MASKOCR_STORE", store := f"s3://{at_s3.buckets[1]}/lines")
    folder = tmp_path / "stages/pretrain/abcd/scratch/checkpoints"
    kept = saved(Checkpoints(folder, artifacts.in_store(folder)), 5)
    storage.put(f"{store}/ab/finished.safetensors", b"of another stage")
    told, nowhere = [], Places((), ())
    forget._unfinished(nowhere, forget.Transcript(told.append, "2026-01-01", act=False))
    assert steps(kept) == [5]
    forget._unfinished(nowhere, forget.Transcript(told.append, "2026-01-01"))
    forget._unfinished(nowhere, forget.Transcript(told.append, "2026-01-01"))
    said = f"unfinished work removed: {store}/unfinished"
    assert told == [f"would be: {said}", said]
    assert at_s3.keys(at_s3.buckets[1], "lines/") == ["lines/ab/finished.safetensors"]
    with pytest.raises(
        RuntimeError, match="refused its checkpoint of step 10: those in s3://.* were removed meanwhile"
    ):
        saved(kept, 10)


def test_a_model_of_another_shape_is_refused_with_what_differs(place):
    kept = saved(place(), 5)
    with pytest.raises(
        ValueError,
        match=r"is of a model of another shape \(bias 2 there, 4 asked; weight 2×3 there, 4×3 asked\): set model",
    ):
        kept.restore(*linear_and_optimizer(0, outputs=4))
    with pytest.raises(ValueError, match=r"0\.bias nothing there, 2 asked; 0\.weight nothing there, 2×3 asked; …"):
        model, optimizer = linear_and_optimizer(0)
        kept.restore(torch.nn.Sequential(model), optimizer)


@pytest.mark.parametrize(
    "content, said",
    [
        (b'{"attem', "is damaged: remove .* to begin anew"),
        (b'{"format_version": 99}', "format_version 99 is not 2; install"),
    ],
)
def test_an_index_that_is_damaged_or_of_another_version_is_refused(place, content, said):
    kept = saved(place(), 5)
    storage.put(f"{kept.uri}/index.json", content)
    with pytest.raises(ValueError, match=said):
        place().begin()


def test_an_error_of_the_writing_is_told_at_the_next_save(tmp_path, monkeypatch):
    kept = saved(Checkpoints(tmp_path), 5)

    def refuse(uri, content):
        raise ValueError("s3://x: cannot be written (503)")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "put", refuse)
        kept.save(10, *linear_and_optimizer(10), {})
        with pytest.raises(
            RuntimeError,
            match=r"cannot be written \(503\): the checkpoint of step 10 .* last good one is .*step-00000005-1",
        ):
            kept.save(15, *linear_and_optimizer(15), {})
    assert steps(kept) == [5]


_FILL = """
import sys
import torch
from itertools import count
from pathlib import Path
from maskocr_core.config import Training
from maskocr_core.data.batches import Batch
from maskocr_core.training.checkpoints import Checkpoints
from maskocr_core.training.loop import fit

class Grows(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(400, 100))
    def forward(self, batch, progress):
        loss = self.weight.square().mean()
        return loss, {"loss": loss.detach()}

room = Path(sys.argv[1])
batch = Batch(torch.zeros(2, 1, 32, 8), torch.ones(2, 1, dtype=torch.bool), ["a", "b"], ["", ""])
def after(step):
    if step == 6:
        (room / "ballast").write_bytes(bytes(700_000))
    return {}
training = Training(steps=20, checkpoint_every=2, shares=1)
try:
    fit(Grows(), lambda *_: (batch for _ in count()), training, Checkpoints(room / "kept"), after=after)
except RuntimeError as error:
    print(error)
(room / "ballast").unlink()
again = Grows()
print(Checkpoints(room / "kept").restore(again, torch.optim.AdamW(again.parameters()))[0])
"""


@pytest.mark.namespace
def test_a_full_disk_stops_training_in_one_sentence_and_the_last_good_checkpoint_is_whole(tmp_path):
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no mount namespace")
    room = tmp_path / "room"
    room.mkdir()
    (tmp_path / "fill.py").write_text(textwrap.dedent(_FILL))
    script = f"mount -t tmpfs -o size=2m tmpfs {room} && exec {sys.executable} {tmp_path / 'fill.py'} {room}"
    done = subprocess.run(
        ["unshare", "-Urm", "bash", "-c", script], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    said, resumed = done.stdout.splitlines()
    assert said == (
        f"the disk is full: the checkpoint of step 6 could not be written; the last good one is {room}/kept/"
        "step-00000004-1.safetensors: free space and run again"
    )
    assert resumed == "4"
