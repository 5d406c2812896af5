"""`maskocr doctor`: what a run will need, checked before it starts, each with its mend."""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

GIGABYTE = 1 << 30


def report(recipe: str, endpoint: str, data: str) -> bool:
    """Print one line a check; whether all that are needed hold."""
    from maskocr_core import config

    settings = config.load(recipe)
    checks: list[tuple[str, Callable[[], str]]] = [
        ("disk", lambda: demand_disk(Path("work"), 2.0)),
        ("memory", _memory),
        ("PyTorch", _torch),
        ("Ray", _ray),
        ("MLflow", _mlflow),
    ]
    if store := os.environ.get("MASKOCR_STORE"):
        checks.append(("store", lambda: _bucket(store)))
    if data:
        checks.append(("data", lambda: _data(data)))
    if endpoint:
        checks.append(("KFP", lambda: _endpoint(endpoint)))
    good = True
    for name, check in checks:
        try:
            print(f"  ok    {name:8} {check()}")
        except (ValueError, ImportError) as error:
            good = False
            print(f"  FAIL  {name:8} {error}")
    print(
        f"recipe {settings.recipe}: {settings.pretrain.steps:,} steps of pre-training on {settings.pretrain.workers or 1} worker(s), "
        f"{settings.sweep.steps:,} steps a start, {settings.sweep.jobs or 1} at a time"
    )
    return good


def demand_disk(folder: Path, gigabytes: float) -> str:
    """Free space where `folder` is or will be; raises ValueError if it is less than needed or cannot be written."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        raise ValueError(f"{place} cannot be written: choose another folder, or change its owner")
    free = shutil.disk_usage(place).free / GIGABYTE
    if free < gigabytes:
        raise ValueError(
            f"{place} has {free:.1f} GB free, {gigabytes:g} GB are needed: free space, or choose a folder on another disk"
        )
    return f"{free:.0f} GB free at {place}"


def _memory() -> str:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIGABYTE
    if total < 4:
        raise ValueError(
            f"{total:.1f} GB of memory, 4 GB are needed: close other programs, or set pretrain.workers=0 and sweep.jobs=0"
        )
    return f"{total:.0f} GB, {os.cpu_count()} cores"


def _torch() -> str:
    import torch

    gpus = torch.cuda.device_count()
    return f"{torch.__version__}, {f'{gpus} GPU(s)' if gpus else 'no GPU: training runs on processors'}"


def _ray() -> str:
    from maskocr_core.services import cluster

    return cluster.check()


def _mlflow() -> str:
    from maskocr_core.services import tracking

    return tracking.check()


def _bucket(store: str) -> str:
    from maskocr_core.services import s3

    s3.check_bucket(store)
    return store


def _data(uri: str) -> str:
    from maskocr_core.services import storage

    files = storage.files(uri)
    return f"{len(files):,} files, {sum(file.size for file in files) / 1e6:,.0f} MB at {uri}"


def _endpoint(endpoint: str) -> str:
    url = f"{endpoint.rstrip('/')}/apis/v2beta1/healthz"
    token = os.environ.get("KFP_TOKEN")
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            if "json" not in answer.headers.get("Content-Type", ""):
                raise ValueError(
                    f"{url} answers, but not as a KFP API (a login page?): use the API's own address, or a port-forward of ml-pipeline:8888"
                )
    except urllib.error.HTTPError as error:
        mend = "set KFP_TOKEN to a valid token" if error.code in (401, 403) else "check the address"
        raise ValueError(f"{url} answers {error.code}: {mend}") from None
    except (urllib.error.URLError, OSError) as error:
        raise ValueError(
            f"{url} cannot be reached ({getattr(error, 'reason', error)}): check the address and the port-forward"
        ) from None
    return endpoint
