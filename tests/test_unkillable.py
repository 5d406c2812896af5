"""Pre-training on two Ray nodes, whatever dies: the lines of the plan each once, and the weights of an undisturbed run.

`python tests/test_unkillable.py` writes what the killed trainings print to benchmarks/results/kill.txt.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nodes
import packed
import pytest
from conftest import REPOSITORY

from maskocr_core import config, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.data import batches
from maskocr_core.training import lineage

SETTINGS = ["model.width=128", "pretrain.batch=16", "pretrain.steps=24", "pretrain.checkpoint_every=4"]
LINES = 64  # four steps an epoch
INSIDE = ["unshare", "--net", "--pid", "--fork", "--mount", "--kill-child"]


def made(root: Path) -> None:
    """Lines, selection and codebook below `root`."""
    lines = packed.pack(root, {"unlabeled": packed.short_lines(LINES, seed=0, length=(3, 9))})
    packed.quantized(root / "codebook", lines, config.load("smoke"))


def killed(root: Path, folder: Path) -> str:
    """What the script prints that kills a worker, then a node."""
    inside = [*INSIDE]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        inside[1:1] = ["--user", "--map-root-user"]
        if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
            pytest.skip("this machine allows no namespaces")
    folder.mkdir()
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp") as short:  # socket paths may not exceed 107 bytes
        script = REPOSITORY / "tests/killed_workers.py"
        command = f"ip link set lo up; mount -t proc proc /proc; exec {sys.executable} {script} {root} {folder}"
        done = subprocess.run(
            [*inside, "bash", "-c", command],
            env=os.environ | {"RAY_TMPDIR": short, "PYTHONPATH": nodes.PYTHONPATH, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def undisturbed(root: Path) -> Artifact:
    """The encoder of a run inside this process that nothing disturbs."""
    inputs = {name: root / name for name in ("lines", "selection", "codebook")}
    settings = config.load("smoke", [*SETTINGS, "pretrain.workers=0"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKOCR_WORK", str(root / "stages"))
        patch.delenv("RAY_ADDRESS", raising=False)
        stages.get("pretrain")(settings, **inputs, encoder_out=root / "encoder")
    return Artifact(root / "encoder")


def plan(root: Path) -> dict[int, list[str]]:
    """Step → the ids of the lines that it is to be made of."""
    settings = config.load("smoke", SETTINGS)
    source = packed.stream((root / "lines", root / "selection"), "unlabeled", settings.data)
    drawn = batches.training(source, batch=16, seed=0)
    return {step: sorted(next(drawn).line_ids) for step in range(24)}


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    """(root, folder of the killed trainings, what was said of each, the undisturbed encoder)."""
    root = tmp_path_factory.mktemp("unkillable")
    made(root)
    alone = undisturbed(root)
    said = killed(root, root / "killed")
    print(said)
    rows = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return root, root / "killed", dict(zip(("worker", "node"), rows, strict=True)), alone


pytestmark = [pytest.mark.cluster, pytest.mark.namespace]
each = pytest.mark.parametrize("lost", ["worker", "node"])


@each
def test_training_goes_on_from_the_last_checkpoint_when_a_worker_or_its_node_is_killed_in_mid_step(trainings, lost):
    said = trainings[2][lost]
    assert len(said["killed"]["checkpoints"]) >= 2 and said["killed"]["world"] == 2
    assert 0 < said["resumed_at"] and said["resumed_at"] % 4 == 0
    assert said["killed"]["checkpoints"][-1] <= said["killed"]["step"] + 1


def test_a_worker_that_is_killed_is_replaced_and_without_its_node_fewer_go_on(trainings):
    assert 2 in trainings[2]["worker"]["worlds"]
    assert 1 in trainings[2]["node"]["worlds"]


@each
def test_the_lines_of_the_final_lineage_are_those_of_the_plan_each_once(trainings, lost):
    root, folder, _, _ = trainings
    found = lineage.final(folder / lost / "steps")
    assert found == plan(root)
    for epoch in range(6):
        drawn = [line for step in range(4 * epoch, 4 * epoch + 4) for line in found[step]]
        assert len(drawn) == len(set(drawn)) == LINES


@each
def test_the_weights_are_those_of_an_undisturbed_run_to_the_bit_whatever_the_number_of_workers(trainings, lost):
    _, folder, _, alone = trainings
    resumed = Artifact(folder / lost / "encoder")
    assert resumed.read_bytes("encoder.safetensors") == alone.read_bytes("encoder.safetensors")


def transcript(root: Path) -> str:
    """What the killed trainings print, and how they compare with the plan and with a run that nothing disturbs."""
    made(root)
    said = [line for line in killed(root, root / "killed").splitlines() if line.startswith(("{", " ", "pretrain"))]
    wanted = undisturbed(root).read_bytes("encoder.safetensors")
    for lost in ("worker", "node"):
        rows = lineage.rows(root / "killed" / lost / "steps")
        found, weights = lineage.final(root / "killed" / lost / "steps"), Artifact(root / "killed" / lost / "encoder")
        said.append(
            f"{lost} killed: {len({row['step'] for row in rows})} steps in {len({row['attempt'] for row in rows})} attempts; "
            f"lines of the final lineage are those of the plan: {found == plan(root)}; "
            f"weights equal those of one undisturbed process to the bit: {weights.read_bytes('encoder.safetensors') == wanted}"
        )
    return "".join(f"{line}\n" for line in said)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        told = f"$ python tests/test_unkillable.py\n{transcript(Path(place))}"
    (REPOSITORY / "benchmarks/results/kill.txt").write_text(told)
    print(told)
