"""Compile every pipeline: `python -m maskocr_pipelines [FOLDER] [--gpus N]`, by default beside its source."""

import argparse
import importlib
from pathlib import Path

from kfp import compiler

from maskocr_pipelines import PIPELINES
from maskocr_pipelines.cluster import Accelerators, accelerated

HERE = Path(__file__).parent


def compile_all(folder: Path, gpus: int = 0, resource: str = Accelerators.resource) -> list[Path]:
    """Write `<name>.yaml` of every pipeline into `folder`; the same sources and GPUs give the same bytes."""
    written = []
    with accelerated(Accelerators(gpus, resource)):
        for name in PIPELINES:
            module = importlib.import_module(f"maskocr_pipelines.{name}")
            # A pipeline is made of tasks when its module is read, so that it is read anew for its GPUs.
            function = getattr(importlib.reload(module), name)
            written.append(folder / f"{name}.yaml")
            compiler.Compiler().compile(function, str(written[-1]))
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder", nargs="?", type=Path, default=HERE, help="where the YAML goes; beside the sources by default"
    )
    parser.add_argument(
        "--gpus", type=int, default=0, help="GPUs of each task that trains or reads with a model (default: 0)"
    )
    parser.add_argument(
        "--resource", default=Accelerators.resource, help="what the device plugin calls them (default: %(default)s)"
    )
    arguments = parser.parse_args()
    if arguments.gpus and arguments.folder.resolve() == HERE:
        parser.error("name a FOLDER of your own for pipelines with GPUs: those beside the sources run on every cluster")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for path in compile_all(arguments.folder, arguments.gpus, arguments.resource):
        print(path)


if __name__ == "__main__":
    main()
