"""The verdicts as a page that a person reads: statistics against their limits, a plot, and lines to look at."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskocr_core import artifacts
from maskocr_core.artifacts import Artifact
from maskocr_core.data import images, lines, pages
from maskocr_core.data.domain_fit import fit
from maskocr_core.data.domain_fit.sampling import Samples
from maskocr_core.data.domain_fit.yardstick import Yardstick

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE, EXAMPLES, SHOWN = "fit.html", "examples.json", "shown.json"
TARGET_EXAMPLES = 6
MAX_SHOWN = 40  # sources with pictures, those first that nobody expects to be good
RATIOS = (0.05, 2000.0)  # between which the plot shows ratios of KID
COLOURS = {"accept": "#047857", "down-weight": "#b45309", "undecided": "#6d28d9", "reject": "#b91c1c"}
KINDS = {
    "typical": "Typical: in the middle of those kept",
    "borderline": "Borderline: kept, and the farthest of those",
    "refused": "Refused one by one: the farthest of all",
}


def write(
    artifact: Artifact,
    yardstick: Yardstick,
    records: list[dict[str, Any]],
    texts: list[dict[str, Any]],
    examples: dict[str, dict[str, list[str]]],
    samples: Samples,
    out: Path,
) -> None:
    """Write `fit.html`, `examples.json` (line ids by source and kind) and `shown.json` into the folder `out`.

    records and examples: as `selecting` gives them; texts: as `sampling.compared_texts` does.
    """
    order = {verdict: place for place, verdict in enumerate(("undecided", "reject", "down-weight", "accept"))}
    records = sorted(records, key=lambda record: (order[record["verdict"]], record["source"]))
    shown = {record["source"]: examples[record["source"]] for record in records[:MAX_SHOWN]}
    reference = _reference(yardstick, samples)
    wanted = reference + [one for kinds in shown.values() for found in kinds.values() for one in found]
    pictures = _pictures(artifact, {identity: samples.shards[identity] for identity in wanted})
    page = pages.template(Path(__file__).with_name("fit_page.html.j2")).render(
        records=[{"number": number, **record} for number, record in enumerate(records, 1)],
        rows={
            source: [
                (KINDS[kind], [pictures[identity] for identity in found if identity in pictures])
                for kind, found in kinds.items()
                if found
            ]
            for source, kinds in shown.items()
        },
        reference=[pictures[identity] for identity in reference if identity in pictures],
        target=yardstick.record(),
        enough=fit.enough(yardstick) if yardstick.groups else None,
        plot=base64.b64encode(_plot(yardstick, records)).decode() if yardstick.groups else "",
        texts=texts,
    )
    (out / PAGE).write_text(page, encoding="utf-8", errors="replace")
    artifacts.write_json(out / EXAMPLES, examples)
    named = {one for kinds in examples.values() for found in kinds.values() for one in found}
    artifacts.write_json(out / SHOWN, {PAGE: sorted(pictures), EXAMPLES: sorted(named)})


def _reference(yardstick: Yardstick, samples: Samples) -> list[str]:
    """Labelled lines near the middle of the target, of as many documents as there are."""
    distances = (yardstick.known.astype(float) ** 2).sum(axis=1)
    order = np.argsort(distances, kind="stable")[: max(TARGET_EXAMPLES, len(distances) // 2)]
    by_document: dict[str, int] = {}
    for place in order:
        by_document.setdefault(samples.target.documents[place], place)
    chosen = list(by_document.values())[:TARGET_EXAMPLES]
    chosen += [place for place in order if place not in chosen][: TARGET_EXAMPLES - len(chosen)]
    return [samples.target.line_ids[place] for place in chosen]


def _pictures(artifact: Artifact, shards: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Small pictures by line id, of the lines of which the shard is given."""
    wanted, found = defaultdict(set), {}
    for identity, shard in shards.items():
        wanted[shard].add(identity)
    for shard, identities in sorted(wanted.items()):
        for batch in lines.rows_of(artifact, shard):
            for place, identity in enumerate(batch["line_id"].to_pylist()):
                if identity in identities:
                    found[identity] = pages.picture(images.decode(batch["image"][place].as_py()))
            if identities <= set(found):
                break
    return found


def _plot(yardstick: Yardstick, records: list[dict[str, Any]]) -> bytes:
    """Coverage against the ratio of KID as SVG: sources by number, the target's own groups, and the limits of both."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    axes = figure.subplots()
    _draw_limits(axes, yardstick)
    for group in yardstick.groups:
        axes.plot(np.clip(group["kid_ratio"], *RATIOS), group["coverage"], "o", color="#9ca3af", markersize=5, zorder=2)
    for number, record in enumerate(records, 1):
        if record["kid"]:
            _draw_source(axes, number, record)
    axes.set_xscale("log")
    axes.set_xlim(*RATIOS)
    axes.set_ylim(-0.03, 1.05)
    axes.set_xlabel(
        "differs as a whole: KID over what as many labelled documents reach at most (log scale)", fontsize=9
    )
    axes.set_ylabel("share of lines kept that are covered", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", labelsize=9)
    content = io.BytesIO()
    # A fixed salt and no date: the same verdicts give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "maskocr"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def _draw_limits(axes: Axes, yardstick: Yardstick) -> None:
    limits = yardstick.thresholds
    accepted = ([RATIOS[0], limits.accept_kid_ratio], fit.enough(yardstick))
    axes.fill_between(*accepted, 1.05, color="#d1fae5", zorder=0)
    axes.text(RATIOS[0] * 1.15, fit.enough(yardstick) + 0.015, "accepted", fontsize=8, color="#047857")
    for x, name in ((limits.accept_kid_ratio, "accept"), (limits.reject_kid_ratio, "reject")):
        axes.axvline(x, color="#6b7280", linewidth=0.8, linestyle="--", zorder=1)
        axes.text(x * 1.05, 1.02, f"{name} {x:g}", fontsize=8, color="#4b5563")
    for y, name in ((fit.enough(yardstick), "accept"), (limits.reject_coverage, "reject")):
        axes.axhline(y, color="#6b7280", linewidth=0.8, linestyle="--", zorder=1)
        axes.text(RATIOS[1] * 0.95, y + 0.01, f"{name} {y:.2f}", fontsize=8, color="#4b5563", ha="right")


def _draw_source(axes: Axes, number: int, record: dict[str, Any]) -> None:
    kid, coverage, colour = record["kid"], record["coverage_interval"], COLOURS[record["verdict"]]
    x, low, high = (float(np.clip(kid[name] / kid["limit"], *RATIOS)) for name in ("value", "low", "high"))
    y = coverage["value"]
    axes.plot([low, high], [y, y], color=colour, linewidth=1.2, zorder=3)
    axes.plot([x, x], [coverage["low"], coverage["high"]], color=colour, linewidth=1.2, zorder=3)
    axes.plot(x, y, "o", color=colour, markersize=13, zorder=4, clip_on=False)
    axes.text(x, y, str(number), color="white", fontsize=8, ha="center", va="center", zorder=5)
