"""Some nights of an archive, for real: `python benchmarks/retraining.py [--work FOLDER]`

The sample's labelled lines lie in a bucket of a real S3 server (SeaweedFS, on this machine), where the unlabelled ones arrive in
parts. Each night `pipelines/retrain.yaml` runs under kfp.local, with MLflow on SQLite; by day a person decides, by the commands
of maskocr and once by moving the alias as the UI does it. One night trains far too little, so that there is something to
refuse. Some half an hour on two cores.

Writes `results/retraining.txt` and `results/promotion.txt`: what the commands said; of the pipeline's tasks the lines that say
what was decided.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    sys.path.insert(0, str(Path(__file__).parents[1]))

import pyarrow.parquet as pq
import servers

from benchmarks import results
from maskocr_core import artifacts, escaping
from maskocr_core.config import Registry
from maskocr_core.services import registered

ROOT = Path(__file__).parents[1]
BUCKET = servers.S3.buckets[0]
ARRIVING = (200, 700, 500, 100)  # of the sample's 1,500 unlabelled lines of Fraktur
OVERRIDES = [
    "retrain.min_lines=500",
    "retrain.settle_minutes=0",
    "pretrain.steps=300",
    'sweep.starts=["scratch", "pretrained"]',
]
HURRIED = [
    "retrain.min_lines=50",
    "retrain.settle_minutes=0",
    "pretrain.steps=10",
    'sweep.starts=["scratch"]',
    "sweep.steps=120",
]
DECIDED = re.compile(
    r"\s*(fresh: (?!\d+/)|decide: |(conclude|register): |quantize: the|pretrain: goes|fit: (?!\d)\w+/|.*: SKIPPED|error)"
)


class Archive:
    """A bucket, an MLflow, and what was said there so far."""

    def __init__(self, server: servers.S3, work: Path):
        self.server, self.work, self.said = server, work, []
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{work / 'mlflow.db'}"
        self.commit = artifacts.code_commit()  # before a result is written into the checkout

    def say(self, line: str) -> None:
        print(line, flush=True)
        self.said.append(line)

    def type(self, line: str, who: str = "archivist", kept: re.Pattern[str] = re.compile("")) -> None:
        """A command of somebody, and of what it says the lines that match `kept`; its exit code where that is not 0."""
        environment = os.environ | self.server.env
        environment |= {
            "MASKOCR_WORK": str(self.work / "stages"),
            "MASKOCR_WHO": who,
            "COLUMNS": "118",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONWARNINGS": "ignore",
        }
        self.say(f"$ {line}")
        done = subprocess.run(
            shlex.split(line),
            cwd=self.work,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with (self.work / "log.txt").open("a") as log:
            log.write(f"$ {line}\n{done.stdout}\n")
        for said in done.stdout.replace(str(self.work), "/srv/archive").splitlines():
            if kept.match(said):
                self.say(said.rstrip())
        self.say(f"(exit code {done.returncode})\n" if done.returncode else "")

    def arrives(self, number: int) -> None:
        """The next part of the unlabelled lines, as one object."""
        lines = pq.read_table(ROOT / "sample/target/unlabeled-fraktur.parquet")
        part = lines.slice(sum(ARRIVING[:number]), ARRIVING[number])
        path = self.work / f"scans-{number + 1}.parquet"
        pq.write_table(part, path)
        self.server.put(f"s3://{BUCKET}/new/{path.name}", path.read_bytes())
        self.say(f"# {part.num_rows} lines have come: s3://{BUCKET}/new/{path.name}")

    def night(self, overrides: list[str]) -> None:
        parameters = {
            "data_uri": f"s3://{BUCKET}/new",
            "claims_uri": f"s3://{BUCKET}/claims",
            "labelled_uri": f"s3://{BUCKET}/labelled",
            "recipe": "pilot",
            "overrides": json.dumps(overrides),
        }
        given = " ".join(shlex.quote(f"{name}={value}") for name, value in parameters.items())
        self.type(f"maskocr run pipelines/retrain.yaml {given}", "schedule", DECIDED)

    def moves_in_the_ui(self, version: int) -> None:
        registered.move_alias(Registry(), "champion", str(version))
        self.say(f"# somebody moves the alias to version {version} in MLflow itself, as its UI does\n")

    def shows_in_the_ui(self) -> None:
        """What the UI's page of the model says, without its markup."""
        said, _ = escaping.unescaped(registered.model_description(Registry()))
        self.say("# what the page of the model in the MLflow UI says\n")
        self.say(re.sub(r"\*\*|^#+ ", "", said, flags=re.MULTILINE) + "\n")

    def write(self, name: str) -> None:
        """What was said since the last time, with the commit that said it."""
        heading = f"# python benchmarks/retraining.py, commit {self.commit}, sample/target\n\n"
        (results.FOLDER / f"{name}.txt").write_text(heading + "\n".join(self.said).rstrip() + "\n")
        self.said = []


def nights(archive: Archive) -> None:
    """Too little, enough, nothing, enough for a challenger."""
    archive.say("# the first night")
    archive.arrives(0)
    archive.night(OVERRIDES)
    archive.say("# the second night")
    archive.arrives(1)
    archive.night(OVERRIDES)
    archive.type('maskocr promote --version 1 --reason "the first; forty pages read by hand"')
    archive.say("# the third night: nothing has come")
    archive.night(OVERRIDES)
    archive.say("# the fourth night")
    archive.arrives(2)
    archive.night(OVERRIDES)
    archive.type("maskocr audit")


def decisions(archive: Archive) -> None:
    """A model that was trained too little: refused, overridden, undone."""
    archive.arrives(3)
    archive.night(HURRIED)
    archive.type('maskocr promote --version 3 --reason "it is newer"')
    archive.type('maskocr promote --version 3 --reason "reads the new hand, which the test lacks" --override')
    archive.type('maskocr rollback --reason "it reads nothing else"')
    archive.moves_in_the_ui(2)
    archive.type("maskocr audit")
    archive.type('maskocr promote --confirm --reason "moved in the UI during the meeting of May"')
    archive.type('maskocr rollback --reason "drops the last character of long lines"')
    archive.type("maskocr audit")
    archive.shows_in_the_ui()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "work" / "retraining", help="where it all lies; begun anew")
    work = parser.parse_args().work.absolute()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / "pipelines").symlink_to(ROOT / "pipelines")
    with servers.seaweed(work / "s3") as server:
        archive = Archive(server, work)
        for name in ("train", "val", "test"):
            path = ROOT / f"sample/target/{name}.parquet"
            server.put(f"s3://{BUCKET}/labelled/{path.name}", path.read_bytes())
        nights(archive)
        archive.write("retraining")
        decisions(archive)
        archive.write("promotion")


if __name__ == "__main__":
    main()
