"""Versions of the data by DVC: a git repository of its own, the data stages in its dvc.yaml, and a remote.

Source: https://dvc.org/doc/user-guide/project-structure/dvcyaml-files. DVC is called as a program: its Python API is not
public.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from maskocr_core.services import s3, storage

DEFINITION = Path(__file__).parents[2] / "dvc.yaml"
_QUIET = {"DVC_NO_ANALYTICS": "1", "DVC_NO_UPDATE_CHECK": "1"}


def track(
    folder: Path,
    *,
    data_uri: str,
    transfer_uri: str,
    protected_uris: str = "",
    recipe: str,
    overrides: list[str],
    remote: str,
    code: dict[str, str],
    config: str,
) -> None:
    """Make `folder` a git and DVC repository for this data, or bring its dvc.yaml and params.yaml up to date.

    code, config: digests of each data stage's sources and of the resolved recipe, which DVC cannot see. remote: where
    `dvc push` puts the data, a folder or s3://bucket/prefix; a relative one counts from `folder`. Raises ValueError
    without a checkout of maskocr, where dvc.yaml lies, and where the remote's bucket does not answer.
    """
    if not DEFINITION.is_file():
        raise ValueError(f"{DEFINITION} is missing: versioning data needs a checkout of maskocr, not only its package")
    if storage.is_remote(remote):
        s3.check_bucket(remote)  # now, and not after hours of `dvc repro`
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ".git").is_dir():
        _call(["git", "init", "--quiet"], folder)
    if not (folder / ".dvc").is_dir():
        dvc(["init", "--quiet"], folder)
        dvc(["config", "core.analytics", "false"], folder)
        dvc(["config", "core.check_update", "false"], folder)
        dvc(["config", "core.autostage", "true"], folder)
    dvc(["remote", "add", "--quiet", "--force", "--default", "store", remote], folder)
    # Else DVC would take an object for what its name says without looking, and check out one that was changed.
    dvc(["remote", "modify", "store", "verify", "true"], folder)
    if os.environ.get("AWS_ENDPOINT_URL") and storage.is_remote(remote):
        dvc(["remote", "modify", "store", "endpointurl", os.environ["AWS_ENDPOINT_URL"]], folder)
    shutil.copyfile(DEFINITION, folder / "dvc.yaml")
    ignored = folder / ".gitignore"
    if "/work/" not in (lines := ignored.read_text().splitlines() if ignored.is_file() else []):
        ignored.write_text("\n".join([*lines, "/work/"]) + "\n")  # where stages called by DVC keep unfinished work
    fingerprint = [
        storage.fingerprint(uri)
        for uri in (data_uri, transfer_uri, *storage.listed(protected_uris))
        if uri and not uri.startswith("models:/")
    ]
    params = {
        "recipe": recipe,
        "flags": " ".join(f"--set {shlex.quote(override)}" for override in overrides),
        "data_uri": shlex.quote(storage.absolute(data_uri)),  # quoted, as they stand in a command of dvc.yaml
        "transfer_uri": shlex.quote(storage.absolute(transfer_uri)),
        "protected_uris": shlex.quote(",".join(map(storage.absolute, storage.listed(protected_uris)))),
        "fingerprint": fingerprint,
        "code": code,
        "config": config,
    }
    (folder / "params.yaml").write_text(json.dumps(params, indent=1) + "\n")  # JSON is YAML


def reproduce(folder: Path) -> str:
    """`dvc repro`, `dvc push` and a commit; the commit that names this version of the data.

    Its message has the data version of every output, so that `git log --grep` finds the commit by what runs and models carry.
    """
    dvc(["repro"], folder)
    dvc(["push"], folder)  # with --quiet DVC would not even say why it fails
    _call(["git", "add", "--all"], folder)
    if _call(["git", "status", "--porcelain"], folder).strip():
        _call(
            [
                "git",
                "-c",
                "user.name=maskocr",
                "-c",
                "user.email=maskocr@localhost",
                "commit",
                "--quiet",
                "--message",
                _message(folder),
            ],
            folder,
        )
    return _call(["git", "rev-parse", "HEAD"], folder).strip()


def _message(folder: Path) -> str:
    manifests = [json.loads(path.read_text()) for path in sorted(folder.glob("*/manifest.json"))]
    return "\n".join(["Version the data", "", *(f"{made['kind']} {made['version']}" for made in manifests)])


def dvc(arguments: list[str], folder: Path) -> None:
    """Run DVC in `folder`, its output going where ours goes. Raises RuntimeError with the command if it fails."""
    process = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=folder, env=_environment(), check=False)
    if process.returncode:
        raise RuntimeError(f"dvc {' '.join(arguments)} failed in {folder}; its message stands above")


def _call(command: list[str], folder: Path) -> str:
    process = subprocess.run(command, cwd=folder, env=_environment(), check=False, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed in {folder}: {process.stderr.strip()}")
    return process.stdout


def _environment() -> dict[str, str]:
    """The stages of dvc.yaml call `maskocr`: the one beside this interpreter comes first."""
    return os.environ | _QUIET | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
