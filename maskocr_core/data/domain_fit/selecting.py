"""From described lines to the selection: which lines are drawn, and how often. Two passes over the shards.

The first describes a sample, bounded for the target and for each source, from which verdicts are made; the second holds every
unlabelled line against the target and writes the selection of its shard. What grows with the data is on disk.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from maskocr_core import artifacts
from maskocr_core.artifacts import Artifact
from maskocr_core.data import lines
from maskocr_core.data.domain_fit import fit, visual_words
from maskocr_core.data.domain_fit.sampling import Describe, Samples, quarantined
from maskocr_core.data.domain_fit.yardstick import Yardstick
from maskocr_core.progress import Progress
from maskocr_core.services import mapping

EXAMPLES = 3  # of each kind of line that a page shows of a source


@dataclass(frozen=True)
class Ruling:
    """What the second pass does with the lines of a source: weight (0: none is kept) times that of the line's visual word."""

    weight: float
    words: tuple[float, ...]


def rulings(yardstick: Yardstick, verdicts: dict[str, fit.Verdict], samples: Samples) -> dict[str, Ruling]:
    """What to do with the lines of each source; visual words count where a source was accepted or down-weighted."""
    words = len(yardstick.centres)
    judged = {name: verdict for name, verdict in verdicts.items() if verdict.verdict in ("accept", "down-weight")}
    admitted = np.zeros(words)
    for source, verdict in judged.items():
        whitened = yardstick.whitened(samples.sources[source].features[verdict.kept])
        used = np.bincount(visual_words.of(whitened, yardstick.centres), minlength=words)
        admitted += verdict.weight * samples.counts[source]["lines"] * used / len(verdict.kept)
    ratios = visual_words.ratios(np.bincount(yardstick.words, minlength=words), admitted).tolist()
    return {
        source: Ruling(verdict.weight, tuple(ratios if source in judged else [1.0] * words))
        for source, verdict in verdicts.items()
    }


def select(
    artifact: Artifact,
    validation: Artifact,
    yardstick: Yardstick,
    ruled: dict[str, Ruling],
    describe: Describe,
    folder: Path,
    out: Path,
) -> dict[str, Counter[str]]:
    """Write the selection of every shard into `out`; `selected`, `refused` and `weight` (a sum) of each unlabelled source."""
    calls = {
        lines.part_of(shard): (artifact, validation, shard, yardstick, ruled, describe)
        for shard in lines.shards(artifact, *lines.SPLITS)
    }
    progress, done = Progress("fit", total=sum(lines.count(artifact, split) for split in lines.SPLITS)), Counter()

    def say(name: str, result: dict[str, Any]) -> None:
        done.update(lines=result["lines"], selected=result["selected"])
        progress.update(done["lines"], selected=done["selected"])

    results = mapping.over(weigh, calls, folder, say=say)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for name, result in results.items():
        artifacts.take_over(folder / name, out, lines.SPLITS)
        for source, count in result["sources"].items():
            counts[source].update(count)
    progress.done(done["lines"], selected=done["selected"])
    return counts


def weigh(
    artifact: Artifact,
    validation: Artifact,
    shard: str,
    yardstick: Yardstick,
    ruled: dict[str, Ruling],
    describe: Describe,
    part: Path,
) -> dict[str, Any]:
    """Second pass over a shard: write its selection (lines.SELECTION) below `part`, if any line is admitted.

    Labelled lines have weight 1; unlabelled ones that of their source and visual word, none if they are unlike any labelled
    line. Quarantined lines are left out. Returns counts.
    """
    split, bad = shard.split("/")[0], quarantined(validation)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    if split == "unlabeled":
        total, weights = 0, {}
        for batch in lines.rows_of(artifact, shard):
            rows = batch.select(["line_id", "source", "image"]).to_pylist()
            total += len(rows)
            rows = [row for row in rows if row["line_id"] not in bad and ruled[row["source"]].weight > 0]
            weights |= _weighed(rows, yardstick, ruled, describe, counts)
    else:
        identities = lines.index_of(artifact, shard, ["line_id"])["line_id"].to_pylist()
        total, weights = len(identities), {identity: 1.0 for identity in identities if identity not in bad}
    if weights:
        names = sorted(weights)
        table = pa.Table.from_arrays([names, [weights[name] for name in names]], schema=lines.SELECTION)
        lines.write(table, part / shard)
    return {"lines": total, "selected": len(weights), "sources": counts}


def records(
    yardstick: Yardstick, verdicts: dict[str, fit.Verdict], samples: Samples, counts: dict[str, Counter[str]]
) -> list[dict[str, Any]]:
    """One record a source: verdict, weight, statistics and reasons, how many lines there are and how many are selected.

    coverage and kid_ratio: the values, None where there are none; their intervals are in `coverage_interval` and `kid`.
    """
    found = []
    for source, verdict in verdicts.items():
        record, sampled, count = verdict.record(), samples.sources[source], counts[source]
        found.append(
            record
            | {
                "source": source,
                "lines": samples.counts[source]["lines"],
                "quarantined": samples.counts[source]["quarantined"],
                "selected": count["selected"],
                "mean_weight": count["weight"] / max(1, count["selected"]),
                "sampled": {
                    "lines": len(sampled.line_ids),
                    "pages": len(set(sampled.pages)),
                    "documents": len(set(sampled.documents)),
                },
                "coverage_interval": record["coverage"],
                "coverage": record["coverage"]["value"] if record["coverage"] else None,
                "kid_ratio": record["kid"]["ratio"] if record["kid"] else None,
            }
        )
    return found


def examples(verdicts: dict[str, fit.Verdict], samples: Samples) -> dict[str, dict[str, list[str]]]:
    """Line ids of each source to be looked at: `typical`, `borderline` (farthest of those kept) and `refused` (farthest)."""
    found = {}
    for source, verdict in verdicts.items():
        identities, order = samples.sources[source].line_ids, np.argsort(verdict.distances, kind="stable")
        kept, refused = ([place for place in order if verdict.kept[place] == side] for side in (True, False))
        middle = max(0, len(kept) // 2 - EXAMPLES // 2)
        groups = {
            "typical": kept[middle : middle + EXAMPLES],
            "borderline": kept[middle + EXAMPLES :][-EXAMPLES:],
            "refused": refused[-EXAMPLES:],
        }
        found[source] = {kind: [identities[place] for place in places] for kind, places in groups.items()}
    return found


def _weighed(
    rows: list[dict[str, Any]],
    yardstick: Yardstick,
    ruled: dict[str, Ruling],
    describe: Describe,
    counts: dict[str, Counter[str]],
) -> dict[str, float]:
    weights: dict[str, float] = {}
    if not rows:
        return weights
    whitened = yardstick.whitened(describe([row["image"] for row in rows]))
    near = yardstick.distances(whitened) <= yardstick.refusal
    for row, kept, word in zip(rows, near, visual_words.of(whitened, yardstick.centres)):
        ruling, count = ruled[row["source"]], counts[row["source"]]
        if not kept:
            count["refused"] += 1
            continue
        weight = float(np.float32(max(fit.MIN_WEIGHT, ruling.weight * ruling.words[word])))
        weights[row["line_id"]] = weight
        count.update(selected=1, weight=weight)
    return weights
