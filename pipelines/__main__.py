"""Compile every pipeline beside its source: `python -m maskocr_pipelines [FOLDER]`."""

import importlib
import sys
from pathlib import Path

from kfp import compiler

from maskocr_pipelines import PIPELINES


def compile_all(folder: Path) -> list[Path]:
    """Write `<name>.yaml` of every pipeline into `folder`; the same sources give the same bytes."""
    written = []
    for name in PIPELINES:
        function = getattr(importlib.import_module(f"maskocr_pipelines.{name}"), name)
        written.append(folder / f"{name}.yaml")
        compiler.Compiler().compile(function, str(written[-1]))
    return written


if __name__ == "__main__":
    for path in compile_all(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent):
        print(path)
