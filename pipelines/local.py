"""A compiled pipeline on this machine: kfp.local runs each task as a process, no cluster and no container."""

import builtins
import contextlib
import io
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from maskocr_pipelines import client


def run(pipeline_yaml: Path, arguments: dict[str, object], root: Path) -> None:
    """Run the pipeline's tasks one after another; outputs lie in `root/<pipeline>-<time>/<task>/`. Says which are skipped.

    Raises ValueError for wrong names in `arguments`, RuntimeError naming the task that failed and why. What the tasks
    print goes to standard output as it comes. Source: kfp.local, which also runs a loaded YAML.
    """
    client.check_names(pipeline_yaml, client.parameters(pipeline_yaml), arguments)
    from kfp import components, local

    # kfp's own cache sees neither changed package code nor changed files behind the same path: off.
    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=str(root),
        enable_caching=False,
        workspace_root=str(Path(root).absolute() / "workspace"),
    )
    text, tasks = _for_this_machine(pipeline_yaml)
    pipeline = components.load_component_from_text(text)
    with _local_run() as log:
        try:
            pipeline(**arguments)
        except RuntimeError as error:
            sentence = _plain(str(error))
            failed = re.search(r"Inner task failed: '([^']+)'", sentence)
            if failed:
                cause = log.causes.get(failed[1], "its log is above")
                sentence = f"task {failed[1]} of pipeline {pipeline.name} failed: {cause}"
            raise RuntimeError(sentence) from None
        for task in tasks:
            if task not in log.begun:
                print(f"{task}: SKIPPED, its condition does not hold")


def _for_this_machine(pipeline_yaml: Path) -> tuple[str, list[str]]:
    """The pipeline as text for kfp.local, and the names of its tasks, those under conditions after those before them.

    Without retries: these are for a lost pod, here they would only repeat a mistake, after a minute of silence. A condition
    on an output is named as kfp.local 2.17 finds it: `task--output` where the compiler writes `task-output`.
    """
    import yaml

    documents = list(yaml.safe_load_all(Path(pipeline_yaml).read_text(encoding="utf-8")))
    spec, names = documents[0], []

    def visit(tasks: dict[str, dict]) -> None:
        inner = []
        for name, task in tasks.items():
            task.pop("retryPolicy", None)
            if "condition" in (policy := task.get("triggerPolicy", {})):
                for parameter, source in task["inputs"]["parameters"].items():
                    if made := source.get("taskOutputParameter"):
                        found = f"pipelinechannel--{made['producerTask']}--{made['outputParameterKey']}"
                        policy["condition"] = policy["condition"].replace(f"'{parameter}'", f"'{found}'")
            dag = spec["components"][task["componentRef"]["name"]].get("dag")
            if dag:
                inner.append(dag["tasks"])
            else:
                names.append(name)
        for tasks_below in inner:
            visit(tasks_below)

    visit(spec["root"]["dag"]["tasks"])
    return yaml.safe_dump_all(documents, sort_keys=False), names


@contextlib.contextmanager
def _local_run() -> Iterator["_Log"]:
    """Stream the logs, silence what only matters on a cluster, and put back what kfp.local leaves changed."""
    log, print_before, unbuffered = _Log(sys.stdout), builtins.print, os.environ.get("PYTHONUNBUFFERED")
    os.environ["PYTHONUNBUFFERED"] = "1"  # else a task's lines come only when it ends
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(log):
            warnings.filterwarnings("ignore", message=".*have no effect in the current local runner")
            warnings.filterwarnings("ignore", message="You may be attemping to run a task that uses custom")
            yield log
    finally:
        builtins.print = print_before  # after parallel tasks kfp.local leaves the indenting one
        if unbuffered is None:
            del os.environ["PYTHONUNBUFFERED"]
        else:
            os.environ["PYTHONUNBUFFERED"] = unbuffered


class _Log(io.TextIOBase):
    """Passes on what tasks print, says when one begins and ends, and leaves out what kfp says to itself.

    `causes` has, for each failed task, the exception its log ended with: kfp's own error lacks it. `begun`: every task
    that was executed.
    """

    def __init__(self, out: io.TextIOBase):
        self.out, self.line, self.last, self.causes = out, "", "", {}
        self.skipping_to, self.began, self.begun = "", time.monotonic(), set()

    def write(self, text: str) -> int:
        *lines, self.line = (self.line + text).split("\n")
        for line in map(_plain, lines):
            self._pass_on(line)
            self.last = line.strip() or self.last
        self.out.flush()
        return len(text)

    def flush(self) -> None:
        self.out.flush()

    def _pass_on(self, line: str) -> None:
        event = re.match(r"\d\d:\d\d:\d\d\.\d+ - \w+ - (.*)", line)
        if self.skipping_to and not event:
            if re.fullmatch(self.skipping_to, line):
                self.skipping_to = ""
            return
        self.skipping_to = ""
        if event:
            self._tell(event[1])
        elif "[KFP Executor" in line:
            self.skipping_to = r"    \}" if "Got executor_input" in line else ""
        elif line.strip() and not set(line) <= {"-"}:
            self.out.write(line.removeprefix("  ") + "\n")

    def _tell(self, event: str) -> None:
        if begins := re.match(r"Executing task '([^']+)'", event):
            self.began = time.monotonic()
            self.begun.add(begins[1])
            self.out.write(f"{begins[1]}\n")
        elif ended := re.match(r"Task '([^']+)' finished with status (\w+)", event):
            if ended[2] == "FAILURE" and re.match(r"[\w.]+: \S", self.last):
                self.causes[ended[1]] = self.last
            self.out.write(f"{ended[1]}: {ended[2]} after {time.monotonic() - self.began:.0f} s\n")
        elif re.match(r"Task '[^']+' outputs:", event):
            self.skipping_to = "never"


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
