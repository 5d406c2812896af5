"""pretrain on two Ray nodes, of which a worker, then the whole second node, is killed: a script for a namespace of its own.

Arguments: the folder of lines, selection and codebook, and a folder for everything else. Prints what happens, and a line of
JSON for each of the two trainings.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import nodes
import psutil

os.environ |= nodes.QUIET
del os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"]  # with it there may be but one node

from ray.cluster_utils import Cluster  # noqa: E402

from maskocr_core import config, stages  # noqa: E402
from maskocr_core.training import lineage  # noqa: E402

SETTINGS = ["model.width=128", "pretrain.batch=16", "pretrain.steps=24", "pretrain.checkpoint_every=4"]
INPUTS = ("lines", "selection", "codebook")
QUIET = {"object_store_memory": 100 << 20, "include_dashboard": False}


def main(root: Path, folder: Path) -> None:
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "8"  # how long Ray looks for workers on a node that is gone
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **QUIET})
    second = cluster.add_node(num_cpus=1, **QUIET)
    os.environ["RAY_ADDRESS"] = cluster.address
    trained(root, folder / "worker", "a worker", lambda row: [psutil.Process(row["process"])])
    raylet = psutil.Process(second.all_processes["raylet"][0].process.pid)
    trained(root, folder / "node", "the second node", lambda row: [raylet, *raylet.children(recursive=True)])
    os._exit(0)  # the namespace takes the cluster along


def trained(root: Path, folder: Path, what: str, doomed) -> None:
    """Pre-train; once the second checkpoint counts, kill what `doomed` says of the row of a step that has just begun."""
    os.environ |= {"MASKOCR_WORK": str(folder / "stages"), "MASKOCR_STEP_LOG": str(folder / "steps")}
    begun, killed = time.monotonic(), {}

    def say(text: str) -> None:
        print(f"{time.monotonic() - begun:6.1f} s  {text}", flush=True)

    def kill_in_mid_step() -> None:
        while len(kept := checkpoints(folder)) < 2:
            time.sleep(0.01)
        told = f"checkpoints of steps {', '.join(map(str, kept))} are written"
        seen = len(lineage.rows(folder / "steps"))
        while not (new := [row for row in lineage.rows(folder / "steps")[seen:] if row["rank"] == 1]):
            seen = seen if new else len(lineage.rows(folder / "steps"))
            time.sleep(0.001)
        for process in doomed(new[-1]):
            process.kill()
        killed.update(new[-1], checkpoints=kept)
        say(told)
        say(f"SIGKILL to {what} in step {new[-1]['step']}, attempt {new[-1]['attempt']}, {new[-1]['world']} workers")

    threading.Thread(target=kill_in_mid_step, daemon=True).start()
    say(f"pretrain begins on two nodes; {what} will be killed")
    settings = config.load("smoke", [*SETTINGS, "pretrain.workers=2"])
    inputs = {name: root / name for name in INPUTS}
    figures = stages.get("pretrain")(settings, **inputs, encoder_out=folder / "encoder")
    rows = [row for row in lineage.rows(folder / "steps") if row["attempt"] > 1]
    say(
        f"attempt {rows[-1]['attempt']} went on at step {figures['resumed_at']:g} with {rows[0]['world']} worker(s) and is done"
    )
    killed = {name: killed[name] for name in ("step", "attempt", "world", "checkpoints")}
    worlds = sorted({row["world"] for row in rows})
    print(json.dumps({"killed": killed, "resumed_at": figures["resumed_at"], "worlds": worlds}), flush=True)


def checkpoints(folder: Path) -> list[int]:
    """Steps of the checkpoints that the index names."""
    for index in folder.glob("stages/pretrain/*/scratch/checkpoints/index.json"):
        return [entry["step"] for entry in json.loads(index.read_text())["checkpoints"]]
    return []


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
