"""ingest on two Ray nodes, of which the second is killed in the middle: a script for a network and pid namespace of its own.

Arguments: the raw data, and a folder for everything else. Prints what happened as one line of JSON.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import nodes
import parts
import psutil

os.environ |= nodes.QUIET
del os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"]  # with it there may be but one node

from ray.cluster_utils import Cluster  # noqa: E402

from maskocr_core import config, stages  # noqa: E402
from maskocr_core.artifacts import Artifact  # noqa: E402
from maskocr_core.data import packing  # noqa: E402

SETTINGS = ["data.shard_lines=8"]


def main(data: str, folder: Path) -> None:
    notes, work = folder / "notes", folder / "stages"
    os.environ |= {"MASKOCR_NOTES": str(notes), "MASKOCR_WORK": str(work), "MASKOCR_MAP": "ray"}
    quiet = {"object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **quiet})
    second = cluster.add_node(num_cpus=1, **quiet)
    os.environ["RAY_ADDRESS"] = cluster.address
    said = {}

    def kill_in_the_middle() -> None:
        """Once both nodes have begun three parts: the second is then in the middle of its third."""
        while sum(second.node_id in note.name for note in notes.glob("*")) < 3:
            time.sleep(0.02)
        finished = [path.parent.name for path in work.glob("ingest/*/scratch/parts/*/result.json")]
        raylet = psutil.Process(second.all_processes["raylet"][0].process.pid)
        for process in (raylet, *raylet.children(recursive=True)):
            process.kill()
        said["finished"] = finished

    threading.Thread(target=kill_in_the_middle, daemon=True).start()
    packing.pack = parts.packed_slowly  # for this process alone: a worker's own is called by it
    stages.get("ingest")(config.load("smoke", SETTINGS), data_uri=data, lines_out=folder / "lines")
    begun = [note.name.split(".")[:2] for note in notes.glob("*")]
    said["begun"] = {name: [node for part, node in begun if part == name] for name, _ in begun}
    said["second"] = second.node_id
    said["files"] = Artifact(folder / "lines").manifest["files"]
    print(json.dumps(said), flush=True)
    os._exit(0)  # the namespace takes the cluster along


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
