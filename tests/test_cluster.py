"""Training and runs on a real Ray cluster on loopback."""

import ipaddress
import json
import os

import packed
import pytest
from conftest import run_stage

from maskocr_core import config
from maskocr_core.services import cluster
from maskocr_core.training.log import TrainingLog

pytestmark = pytest.mark.cluster


def test_two_workers_train_an_encoder_as_one_process_does(tmp_path):
    settings = config.load("smoke", ["pretrain.steps=20", "pretrain.workers=2", "pretrain.checkpoint_every=10"])
    alone = settings.model_copy(update={"pretrain": settings.pretrain.model_copy(update={"workers": 0})})
    lines = packed.pack(tmp_path, {"unlabeled": packed.short_lines(32, seed=0)})
    packed.quantized(tmp_path / "codebook", lines, settings)
    figures, rows = {}, {}
    for name, own in (("shared", settings), ("alone", alone)):
        figures[name] = run_stage("pretrain", own, tmp_path, tmp_path, encoder_out=tmp_path / name)
        rows[name] = TrainingLog(tmp_path / name / "log.jsonl").rows()
    assert (tmp_path / "shared/encoder.safetensors").stat().st_size == (
        tmp_path / "alone/encoder.safetensors"
    ).stat().st_size
    assert [row["step"] for row in rows["shared"]] == [10, 20] == [row["step"] for row in rows["alone"]]
    # The same lines at every step, other masks: the losses are near each other, and fall.
    for shared, single in zip(rows["shared"], rows["alone"]):
        assert shared["masked_loss"] == pytest.approx(single["masked_loss"], rel=0.1)
        assert shared["learning_rate"] == single["learning_rate"]
    assert rows["shared"][1]["masked_loss"] < rows["shared"][0]["masked_loss"]
    assert figures["shared"]["steps"] == 20 and figures["shared"]["resumed_at"] == 0


@pytest.fixture(scope="module")
def failed_training(tmp_path_factory):
    """(error, sockets that listened meanwhile) of two workers that met, of which one then failed."""
    seen = tmp_path_factory.mktemp("cluster") / "listening.json"

    def meet_and_fail(rank, world, driver):
        import psutil
        import torch

        met = torch.ones(1)
        torch.distributed.all_reduce(met)
        if rank == 0:
            sockets = [
                (process.name(), socket.laddr.ip)
                for process in psutil.Process(driver).children(recursive=True)
                for socket in process.net_connections("inet")
                if socket.status == psutil.CONN_LISTEN
            ]
            seen.write_text(json.dumps(sockets))
            raise ValueError(f"the page is torn, said one of {int(met)} workers")

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with pytest.raises(RuntimeError) as failure:
            cluster.data_parallel(meet_and_fail, (os.getpid(),), 2)
    return str(failure.value), json.loads(seen.read_text()) if seen.exists() else []


def test_a_worker_that_fails_ends_in_one_sentence_with_its_cause(failed_training):
    said, _ = failed_training
    assert said.startswith("a training worker failed: ") and "\n" not in said
    assert "the page is torn, said one of 2 workers" in said and len(said) < 200


def test_nothing_listens_beyond_this_machine_while_workers_train(failed_training):
    _, sockets = failed_training
    assert {"raylet", "gcs_server"} <= {name for name, _ in sockets}
    addresses = {address: name for name, address in sockets}
    open_to_others = {}
    for address, name in addresses.items():
        parsed = ipaddress.ip_address(address)
        if not (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback:
            open_to_others[address] = name
    assert not open_to_others


def test_runs_come_back_in_the_order_of_their_calls():
    def square(number):
        return number * number, os.getpid()

    results = cluster.each(square, [(number,) for number in (3, 1, 2)], jobs=2)
    assert [result for result, _ in results] == [9, 1, 4]
    assert len({process for _, process in results} | {os.getpid()}) == 4  # a process of its own for each


def test_a_run_that_fails_names_its_cause():
    def invert(number):
        if not number:
            raise ValueError("nothing can be divided by nothing")
        return 1 / number

    with pytest.raises(RuntimeError, match="^a run failed: .*nothing can be divided by nothing$"):
        cluster.each(invert, [(1,), (0,), (2,)], jobs=2)


def test_a_cluster_that_does_not_answer_is_said_with_the_mend(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(
        ValueError, match="RAY_ADDRESS=127.0.0.1:1 does not answer .*: start the cluster, or unset RAY_ADDRESS"
    ):
        cluster.check()
