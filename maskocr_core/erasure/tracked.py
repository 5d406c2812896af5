"""MLflow without what is to be erased: artifacts of runs redacted, and models that saw it tagged."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

from maskocr_core.erasure import redact, repack
from maskocr_core.erasure.doomed import Doomed
from maskocr_core.services import logged

TAG = "saw_forgotten"


def clean(doomed: Doomed, date: str, act: bool = True) -> Iterator[tuple[str, str, str]]:
    """Redact or remove files and tags of runs, files of logged models, and what versions say; (run or model, path, what was
    done) of each."""
    for place in logged.places():
        contents = {path: logged.read(place.uri, path) for path in logged.files(place.uri) if _may_hold(path)}
        shown = redact.shown_by((path, content) for path, content in contents.items() if redact.lists_shown(path))
        new: dict[str, bytes | None] = {}
        for path, content in contents.items():
            if redact.holds(path, io.BytesIO(content), doomed, shown.get(path, ())):
                new[path] = redact.cleaned(path, content, doomed, date)
        if new and place.kind == "run":
            new |= _report(place, contents, new, doomed)
        for path, content in new.items():
            if act:
                logged.replace(place.uri, path, content)
            yield f"{place.kind} {place.name}", path, "removed" if content is None else "rewritten"
        if place.kind == "run":
            yield from _clean_tags(place.name, doomed, act)
    yield from _clean_descriptions(doomed, act)


def _clean_descriptions(doomed: Doomed, act: bool) -> Iterator[tuple[str, str, str]]:
    for model, version, said in logged.descriptions():
        if (redacted := redact.markdown_without(said, doomed)) != said:
            if act:
                logged.describe(model, version, redacted)
            yield f"model {model}", f"description of version {version}", "rewritten"


def _clean_tags(run: str, doomed: Doomed, act: bool) -> Iterator[tuple[str, str, str]]:
    for name, value in logged.tags(run).items():
        if (redacted := redact.text_without(value, doomed)) != value:
            if act:
                logged.set_tag(run, name, redacted)
            yield f"run {run}", f"tag {name}", "rewritten"


def flag(doomed: Doomed, date: str, act: bool = True) -> Iterator[tuple[str, str, str]]:
    """Tag every model version that was trained on what is forgotten; (model, version, what the tag says)."""
    forgotten = doomed.digests()
    for model, version, saw in logged.versions():
        common = forgotten.intersection(saw["documents"]) if saw else ()
        if common:
            said = f"{date}: lines of {len(common)} {'document' if len(common) == 1 else 'documents'}"
        elif saw is None or not saw["complete"]:
            said = f"{date}: not known, it does not say all that it saw"
        else:
            continue
        if act:
            logged.tag_version(model, version, TAG, said)
        yield model, version, said


def _report(
    place: logged.Place, contents: dict[str, bytes], new: dict[str, bytes | None], doomed: Doomed
) -> dict[str, bytes | None]:
    """The report of a run drawn again, from its own summary or that of the pipeline's run above it."""
    if not set(repack.REPORT).intersection(new):
        return {}
    summary, above = contents.get("summary.json"), logged.parent(place.run)
    if summary is None and above and "summary.json" in set(logged.files(above)):
        summary = logged.read(above, "summary.json")
    if summary is None:
        return {}
    pages = repack.report(redact.without(json.loads(summary), doomed))
    return {name: page for name, page in pages.items() if contents.get(name, page) != page}


def _may_hold(path: str) -> bool:
    return not path.endswith(redact.WEIGHTS)
