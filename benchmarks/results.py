"""The form of every committed result: figures with unit, goal and spread, and all that is needed to make them again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import statistics
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from maskocr_core import artifacts

FOLDER = Path(__file__).parent / "results"
PACKAGES = ("maskocr", "torch", "pyarrow", "ray", "kfp", "mlflow", "dvc", "great-expectations")


def save(
    name: str,
    *,
    command: str,
    figures: dict[str, dict[str, Any]],
    runs: list[Any],
    seeds: list[int] = (),
    data: dict[str, str] | None = None,
    commit: str | None = None,
) -> Path:
    """Write `results/<name>.json`. A figure is {"value", "unit", "goal", "better": "higher" | "lower", "spread": [low, high]}."""
    content = {
        "command": command,
        "commit": commit or artifacts.code_commit(),
        "versions": versions(PACKAGES),
        "python": platform.python_version(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", "1")),
        "seeds": list(seeds),
        "data": data or {},
        "figures": figures,
        "runs": runs,
    }
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return path


def demand_quiet(name: str, usual: str, seconds: float = 3.0) -> None:
    """Raises RuntimeError if other programs use a fifth of a core, unless the result has another name than the usual one."""
    ticks = os.sysconf("SC_CLK_TCK")

    def used() -> float:
        """Seconds of all cores that were not idle, nor waiting for a disk, since the machine started."""
        user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:8])
        return (user + nice + system + sum(interrupts)) / ticks

    before, began = used(), time.monotonic()
    time.sleep(seconds)
    cores = (used() - before) / (time.monotonic() - began)
    if cores > 0.2 and name == usual:
        raise RuntimeError(
            f"other programs use {cores:.1f} cores: a speed that is measured beside them is none; wait for them, or try it "
            "under another --name"
        )


def short(commit: str) -> str:
    """A commit as tables show it; one whose files were changed says so."""
    return f"`{commit[:7]}`" + (" with files changed" if commit.endswith("-dirty") else "")


def percent(values: list[float]) -> str:
    """Shares of several seeds as their mean and [least, most], in percent."""
    return f"{100 * sum(values) / len(values):.1f} % [{100 * min(values):.1f}, {100 * max(values):.1f}]"


def load(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def earlier(name: str) -> dict[str, Any]:
    """What a result holds that is to be added to; no runs of no data where there is none yet."""
    return load(name) if (FOLDER / f"{name}.json").is_file() else {"runs": [], "data": {}}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those packages that are there: a machine of a benchmark may lack the ones that it does not use."""
    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def digest(pack: Path) -> str:
    """sha256 of the Parquet files of a pack."""
    found = hashlib.sha256()
    for path in sorted(pack.glob("*.parquet")):
        found.update(path.read_bytes())
    return found.hexdigest()


def figure(values: list[float], unit: str, better: str, goal: float | None = None) -> dict[str, Any]:
    """A figure of the median of some values, with their spread if there are several."""
    spread = [min(values), max(values)] if len(values) > 1 else None
    return {"value": statistics.median(values), "unit": unit, "goal": goal, "better": better, "spread": spread}


def shown(figure: dict[str, Any], form: str) -> str:
    """A figure with its spread, each number in a format such as `.1f`."""
    spread = figure["spread"]
    inside = f" [{spread[0]:{form}}, {spread[1]:{form}}]" if spread else ""
    return f"{figure['value']:{form}}{inside}"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
