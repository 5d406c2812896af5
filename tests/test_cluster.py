"""Training and runs on a real Ray cluster on loopback."""

import ipaddress
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nodes
import packed
import pytest
from conftest import run_stage

from maskocr_core import artifacts, config
from maskocr_core.artifacts import Artifact
from maskocr_core.services import cluster, post, storage, workers
from maskocr_core.training import checkpoint
from maskocr_core.training.log import TrainingLog
from maskocr_core.training.saw import Saw

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
    weights = [(tmp_path / name / "encoder.safetensors").read_bytes() for name in figures]
    assert weights[0] == weights[1]
    assert [row["step"] for row in rows["shared"]] == [10, 20] == [row["step"] for row in rows["alone"]]
    for shared, single in zip(rows["shared"], rows["alone"]):
        for name in ("masked_loss", "visible_loss", "learning_rate"):
            assert shared[name] == pytest.approx(single[name], abs=2e-6)
    assert rows["shared"][1]["masked_loss"] < rows["shared"][0]["masked_loss"]
    assert figures["shared"]["steps"] == 20 and figures["shared"]["resumed_at"] == 0


@pytest.fixture
def letters(monkeypatch):
    """What was brought from nodes that share no folder, in the order in which it came."""
    came, delivered = [], post._delivered
    monkeypatch.setattr(post, "_delivered", lambda letter: (came.append(letter), delivered(letter)))
    return came


@pytest.mark.services
def test_workers_that_share_no_folder_with_the_caller_go_by_the_store_and_send_back_what_they_made(
    at_s3, tmp_path, monkeypatch, letters
):
    monkeypatch.setenv("MASKOCR_STORE", f"s3://{at_s3.buckets[0]}/lines")
    settings = config.load("smoke", ["pretrain.workers=2"])
    lines = packed.pack(tmp_path, {"unlabeled": packed.short_lines(16, seed=0)})
    packed.quantized(tmp_path / "codebook", lines, settings)
    touch = Path.touch
    monkeypatch.setattr(Path, "touch", lambda path: None if path.name.startswith(".seen-") else touch(path))
    with nodes.one_node() as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert run_stage("pretrain", settings, tmp_path, tmp_path, encoder_out=tmp_path / "encoder")["steps"] == 8
    assert [row["step"] for row in TrainingLog(tmp_path / "encoder/log.jsonl").rows()] == [8]
    assert Artifact(tmp_path / "encoder").read_bytes("encoder.safetensors")
    came = {letter.name: letter.content for letter in letters}
    assert list(came)[-1] == "log.jsonl", "a row is said when the pictures before it are there"
    for name in ("log.jsonl", "pictures/step-00000008.png"):
        assert came[name] == Artifact(tmp_path / "encoder").read_bytes(name)


def test_no_more_workers_train_than_the_machine_has_gpus(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"GPU": 1}')
    found = workers.data_parallel(lambda rank, world, folder: {"world": float(world)}, (tmp_path,), 2, tmp_path)
    assert found == {"world": 1.0}
    assert "2 workers were asked for, each wants a GPU, and there are 1: 1 will train" in capsys.readouterr().out


SWEEP = ('sweep.starts=["scratch","transfer","pretrained"]', "sweep.steps=8", "sweep.transfer_steps=4", "sweep.jobs=2")


def to_fine_tune(root, settings):
    """Lines, selection and encoder below `root`."""
    splits = dict(zip(("train", "val", "transfer-train", "transfer-val"), range(4)))
    packed.pack(root, {name: packed.short_lines(8, seed=seed) for name, seed in splits.items()})
    encoder = checkpoint.new_encoder(settings.model, settings.data.height)
    checkpoint.save_encoder(encoder, settings.model, settings.data, root / "encoder")
    Saw().write(root / "encoder")
    artifacts.finish(root / "encoder", kind="encoder", config={}, metrics={"cpu_minutes": 0.0})


def recognisers(folder):
    return {
        start: Artifact(folder).read_bytes(f"{start}-0/all/recognizer.safetensors")
        for start in ("scratch", "transfer", "pretrained")
    }


@pytest.fixture
def fine_tuned_here(tmp_path):
    """What the runs come to inside this process, by start."""
    settings = config.load("smoke", [*SWEEP, "sweep.jobs=0"])
    to_fine_tune(tmp_path, settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKOCR_WORK", str(tmp_path / "work-here"))
        run_stage("finetune", settings, tmp_path, tmp_path, transfer_uri="", recognizers_out=tmp_path / "here")
    return recognisers(tmp_path / "here")


def test_fine_tuning_on_a_given_cluster_finds_inputs_that_are_named_from_where_it_was_called(
    fine_tuned_here, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASKOCR_WORK", "work-there")
    with nodes.one_node() as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        run_stage(
            "finetune", config.load("smoke", SWEEP), Path(), Path(), transfer_uri="", recognizers_out=Path("there")
        )
    assert recognisers(tmp_path / "there") == fine_tuned_here


@pytest.mark.services
def test_fine_tuning_on_nodes_that_share_no_folder_with_the_caller_goes_by_the_store(
    at_s3, fine_tuned_here, tmp_path, monkeypatch, letters
):
    monkeypatch.setenv("MASKOCR_STORE", f"s3://{at_s3.buckets[0]}/far")
    monkeypatch.setenv("MASKOCR_WORK", str(tmp_path / "work-there"))
    touch, of = Path.touch, workers.Carried.of
    monkeypatch.setattr(Path, "touch", lambda path: None if path.name.startswith(".seen-") else touch(path))
    unseen = lambda path: replace(of(path), path=Path("/nowhere") / path.name)  # noqa: E731
    monkeypatch.setattr(workers.Carried, "of", unseen)
    room = tmp_path / "of-nodes"
    room.mkdir()
    monkeypatch.setenv("TMPDIR", str(room))
    with nodes.one_node() as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        run_stage(
            "finetune",
            config.load("smoke", SWEEP),
            tmp_path,
            tmp_path,
            transfer_uri="",
            recognizers_out=tmp_path / "there",
        )
    assert recognisers(tmp_path / "there") == fine_tuned_here
    kept = {file.name.split("/")[1] for file in storage.files(f"s3://{at_s3.buckets[0]}/far/unfinished/runs/")}
    assert "result.json" in kept and "checkpoints" not in kept
    assert {letter.name for letter in letters} == {"log.jsonl"} and len({letter.folder for letter in letters}) == 4
    assert not list(room.glob("maskocr-*")), "nothing of the run stays on the nodes"


def test_the_calibration_that_is_kept_goes_by_the_documents_that_the_gate_asks_for(tmp_path):
    settings = config.load("smoke", [*SWEEP, "sweep.jobs=0", 'sweep.starts=["scratch"]', "gate.min_documents=77"])
    to_fine_tune(tmp_path, settings)
    run_stage("finetune", settings, tmp_path, tmp_path, transfer_uri="", recognizers_out=tmp_path / "recognizers")
    kept = json.loads((tmp_path / "recognizers/scratch-0/all/calibration.json").read_text())
    assert "fewer than 77" in kept["reason"]


def test_fine_tuning_on_nodes_that_share_neither_a_folder_nor_a_store_is_refused(tmp_path, monkeypatch):
    settings = config.load("smoke", SWEEP)
    to_fine_tune(tmp_path, settings)
    monkeypatch.setenv("MASKOCR_WORK", str(tmp_path / "work-there"))
    monkeypatch.setattr(Path, "touch", lambda path: None)
    with pytest.raises(ValueError, match="workers do not see .*: give the nodes a common folder for MASKOCR_WORK, or"):
        run_stage("finetune", settings, tmp_path, tmp_path, transfer_uri="", recognizers_out=tmp_path / "there")


def test_workers_that_share_neither_a_folder_nor_a_store_with_the_caller_are_refused(tmp_path, monkeypatch):
    with pytest.raises(
        ValueError, match=r"workers do not see .*/work: give the nodes a common folder for MASKOCR_WORK, or"
    ):
        workers.place_of(tmp_path / "work", tmp_path / "work/.seen-1").__enter__()


def test_the_small_files_of_an_artifact_come_along_to_where_its_folder_is_not_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKOCR_STORE", "s3://somewhere")
    monkeypatch.setenv("RAY_ADDRESS", "there:6379")
    artifacts.write_json(tmp_path / "thing/deep/a.json", {"a": 1})
    artifacts.finish(tmp_path / "thing", kind="thing", config={}, metrics={})
    carried = workers._carried(tmp_path / "thing")
    assert carried.here(tmp_path) == tmp_path / "thing"
    (tmp_path / "thing").rename(tmp_path / "gone")
    assert carried.here(tmp_path) != tmp_path / "thing"
    assert Artifact(carried.here(tmp_path)).read_json("deep/a.json") == {"a": 1}


@pytest.fixture(scope="module")
def failed_training(tmp_path_factory):
    """(error, sockets that listened meanwhile, command lines of Ray's processes) of two workers that met, of which one then failed."""
    folder = tmp_path_factory.mktemp("cluster")
    seen = folder / "seen.json"

    def meet_and_fail(rank, world, driver):
        import psutil
        import torch

        met = torch.ones(1)
        torch.distributed.all_reduce(met)
        if rank == 0:
            processes = psutil.Process(driver).children(recursive=True)
            sockets = [
                (process.name(), socket.laddr.ip)
                for process in processes
                for socket in process.net_connections("inet")
                if socket.status == psutil.CONN_LISTEN
            ]
            commands = [" ".join(process.cmdline()) for process in processes]
            seen.write_text(json.dumps([sockets, commands]))
            raise ValueError(f"the page is torn, said one of {int(met)} workers")
        with workers.among_peers():
            torch.distributed.all_reduce(met)

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with pytest.raises(ValueError) as failure:
            workers.data_parallel(meet_and_fail, (os.getpid(),), 2, folder)
    return str(failure.value), *(json.loads(seen.read_text()) if seen.exists() else ([], []))


def test_a_worker_that_fails_ends_in_its_own_sentence_and_is_not_tried_again(failed_training):
    assert failed_training[0] == "the page is torn, said one of 2 workers"


def test_nothing_listens_beyond_this_machine_while_workers_train(failed_training):
    sockets = failed_training[1]
    assert {"raylet", "gcs_server"} <= {name for name, _ in sockets}
    addresses = {address: name for name, address in sockets}
    open_to_others = {}
    for address, name in addresses.items():
        parsed = ipaddress.ip_address(address)
        if not (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback:
            open_to_others[address] = name
    assert not open_to_others


def test_beside_the_workers_ray_has_no_process_that_has_nothing_to_do(failed_training):
    commands = failed_training[2]
    titles = [command for command in commands if command.startswith("ray::")]
    servers = {command.partition("/ray/")[2].partition(" ")[0] for command in commands if command not in titles}
    assert {Path(server).name for server in servers if server} == {"gcs_server", "raylet"}
    assert len([title for title in titles if "RayTrainWorker" in title]) == 2
    others = {
        title.removeprefix("ray::").partition(".")[0].strip() for title in titles if "RayTrainWorker" not in title
    }
    assert "TrainController" in others  # and what Ray's own code cannot do without
    assert others <= {
        "TrainController",
        "SynchronizationActor",
        "DashboardAgent",
        "RuntimeEnvAgent",
        "IDLE",
    }


def test_runs_come_back_in_the_order_of_their_calls():
    def square(number):
        return number * number, os.getpid()

    results = cluster.each(square, [(number,) for number in (3, 1, 2)], jobs=2)
    assert [result for result, _ in results] == [9, 1, 4]
    assert len({process for _, process in results} | {os.getpid()}) == 4  # a process of its own for each


def test_runs_share_a_gpu_where_there_is_one_and_ask_for_it_where_one_will_be(monkeypatch):
    def share(_):
        import ray

        return ray.get_runtime_context().get_assigned_resources().get("GPU", 0)

    assert cluster.each(share, [(0,)], jobs=1) == [0]
    with nodes.one_node(gpus=1) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert cluster.each(share, [(0,), (1,)], jobs=2) == [0.5] * 2
        assert cluster.each(share, [(0,), (1,)], jobs=8) == [cluster.GPU_SHARE] * 2
        assert cluster.each(lambda _: cluster.gpus_held(), [(0,)], jobs=2) == [0.5]
    assert cluster.gpus_held() == 1
    empty = SimpleNamespace(cluster_resources=lambda: {"CPU": 2.0})
    assert not cluster.has_gpus(empty)
    monkeypatch.setenv("MASKOCR_GPUS", "1")
    assert cluster.has_gpus(empty)


def test_a_run_that_fails_names_its_cause():
    def invert(number):
        if not number:
            raise ValueError("nothing can be divided by nothing")
        return 1 / number

    with pytest.raises(ValueError, match="^nothing can be divided by nothing$"):
        cluster.each(invert, [(1,), (0,), (2,)], jobs=2)


def test_what_several_tasks_are_given_is_sent_once():
    class Heavy:
        """Counts how often it is pickled."""

        def __init__(self):
            self.sent = 0

        def __getstate__(self):
            self.sent += 1
            return {"sent": self.sent}

    heavy, own = Heavy(), [Heavy() for _ in range(4)]
    calls = {str(number): (number, heavy, own[number], None, "here") for number in range(4)}
    found = dict(cluster.tasks(lambda *call: (call[0], call[1].sent, call[3:]), calls, jobs=2, retries=0))
    assert found == {str(number): (number, 1, (None, "here")) for number in range(4)}
    assert heavy.sent == 1 and [one.sent for one in own] == [1] * 4


def test_no_run_is_begun_after_one_has_failed(tmp_path):
    def mark(number):
        (tmp_path / str(number)).touch()
        if not number:
            raise ValueError("nothing")

    with pytest.raises(ValueError, match="^nothing$"):
        cluster.each(mark, [(number,) for number in range(4)], jobs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def test_a_cluster_that_does_not_answer_is_said_with_the_mend(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(
        ValueError, match="RAY_ADDRESS=127.0.0.1:1 does not answer .*: start the cluster, or unset RAY_ADDRESS"
    ):
        cluster.check()


def test_a_run_whose_process_dies_is_started_again(tmp_path):
    def fragile(mark):
        import signal

        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    assert cluster.each(fragile, [(tmp_path / "mark",)], jobs=1) == ["done"]
