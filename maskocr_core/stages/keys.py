"""What a stage's result depends on, as one digest: its code, what it reads of the config, and the versions of its inputs."""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from maskocr_core import artifacts
from maskocr_core.config import Config
from maskocr_core.services import storage

_PACKAGE = Path(__file__).parent.parent
# Recipes are in the key as the resolved config; the others say how results are kept and told, not what they are.
_NOT_CODE_OF_A_RESULT = tuple(
    _PACKAGE / name
    for name in (
        "recipes.py",
        "progress.py",
        "stages/__init__.py",
        "stages/keys.py",
        "services/tracking.py",
        "services/compared.py",
    )
)


def key(
    function: Callable[..., Any],
    config: Config,
    reads: tuple[str, ...],
    inputs: dict[str, Path | str],
    also: str,
    places: tuple[str, ...] = (),
) -> str:
    """Digest of all that decides what a stage, `function`, comes to: the arguments are those of `@stage`, and its `inputs`.

    An input that is left out is the same as its default given: pipelines name all of them, people some.
    """
    name = function.__name__
    parts = [name, config.digest(reads), code_version(name), also]
    types = inspect.get_annotations(function, eval_str=True)
    defaults = {
        argument: parameter.default
        for argument, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not parameter.empty
    }
    for argument, value in sorted((defaults | inputs).items()):
        if types[argument] is Path:
            parts.append(f"{argument}={_version(argument, artifacts.Artifact(Path(value)))}")
        elif argument.endswith("_uri") and value and argument not in places:
            parts.append(f"{argument}={_content(str(value))}")
        elif argument.endswith("_uris"):
            parts.append(f"{argument}={[_content(uri) for uri in storage.listed(str(value))]}")
        else:
            parts.append(f"{argument}={value}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def code_version(name: str) -> str:
    """sha256 of the sources that a stage can reach by imports: other code does not make its work stale."""
    digest = hashlib.sha256()
    for path in sources(name):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def sources(name: str) -> list[Path]:
    """The files of this package that the stage `name` imports, directly or not, itself included."""
    seen: set[Path] = set()
    todo = [_PACKAGE / "stages" / f"{name}.py"]
    while todo:
        path = todo.pop()
        if path in seen or path in _NOT_CODE_OF_A_RESULT:
            continue
        seen.update(path.parent.glob(f"{path.stem}.*"))  # with the templates beside a module
        todo.extend(_imported(path))
    return sorted(seen)


def _imported(path: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("maskocr_core"):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("maskocr_core")]
        else:
            continue
        for module in names:
            base = _PACKAGE.joinpath(*module.split(".")[1:])
            yield from (file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file())


def _version(argument: str, artifact: artifacts.Artifact) -> str:
    """Data version of an input; lines of which something was forgotten since are other lines.

    Raises ValueError for an artifact of another kind than the argument's.
    """
    if (kind := artifact.manifest["kind"]) != argument:
        raise ValueError(f"{artifact.folder} holds {kind}, and {argument} is asked for: give the folder that has that")
    if argument != "lines":
        return artifact.version
    from maskocr_core.data import lines

    return lines.version(artifact)


def _content(uri: str) -> str:
    """What stands for the content behind a URI: an alias of a model moves, files change."""
    if uri.startswith("models:/"):
        from maskocr_core.services import registered

        return registered.resolved(uri)
    return storage.fingerprint(uri)
