"""fit: unlabelled lines + labelled target lines → a verdict on each source, and the selection of lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from maskocr_core.config import Config
from maskocr_core.stages import scratch, stage

if TYPE_CHECKING:
    from maskocr_core.data.domain_fit.sampling import Describe

VERDICTS = ("accept", "down-weight", "reject", "undecided")


def _champion(config: Config) -> str:
    """The model whose encoder describes the lines, as `<tracking> models:/name/version`; empty for strokes."""
    from maskocr_core.services import registered, tracking

    if config.fit.features == "strokes":
        return ""
    version = registered.version_of(config.registry, "champion")
    if not version and config.fit.features == "champion":
        raise ValueError(
            f"fit.features=champion, and {config.registry.model!r} has no champion: promote a model, or set fit.features=auto"
        )
    return f"{tracking.uri()} models:/{config.registry.model}/{version}" if version else ""


@stage(reads=("fit", "registry"), also=_champion)
def fit(config: Config, *, lines: Path, validation: Path, selection_out: Path) -> dict[str, float]:
    """Judge whether each unlabelled source looks like the target's labelled lines, and select lines with their weights.

    lines: shards as ingest writes them.
    validation: the quarantine, as validate writes it; its lines are left out everywhere.
    selection_out: a file a shard with line ids and weights, `verdicts.json`, one record a source, `yardstick.json`, `texts.json`, and for people `fit.html`; `shown.json` and `examples.json`: which lines it shows.
    """
    from maskocr_core import artifacts
    from maskocr_core.artifacts import Artifact
    from maskocr_core.data.domain_fit import fit as domain_fit
    from maskocr_core.data.domain_fit import fit_page, sampling, selecting, yardstick

    describe, described_by = _describer(config)
    inputs, folder = (Artifact(lines), Artifact(validation)), scratch(selection_out)
    samples = sampling.sample(*inputs, describe, folder)
    limits = {"accept_kid_ratio": config.fit.accept_kid_ratio, "reject_kid_ratio": config.fit.reject_kid_ratio}
    target = yardstick.calibrate(samples.target, yardstick.Thresholds(**limits), config.fit.seed)
    verdicts = {source: domain_fit.judge(target, found) for source, found in samples.sources.items()}
    rulings = selecting.rulings(target, verdicts, samples)
    counts = selecting.select(*inputs, target, rulings, describe, folder / "weighed", selection_out)
    records = selecting.records(target, verdicts, samples, counts)
    texts, examples = sampling.compared_texts(samples), selecting.examples(verdicts, samples)
    for record in records:
        print(
            f"fit: {record['source']}: {record['verdict']} ({record['lines']:,} lines, weight {record['weight']:.2f}). {' '.join(record['reasons'])}",
            flush=True,
        )
    for found in texts:
        for warning in found["warnings"]:
            print(f"fit: warning: texts of {found['source']}: {warning}", flush=True)
    artifacts.write_json(selection_out / "verdicts.json", records)
    artifacts.write_json(selection_out / "yardstick.json", target.record() | {"features": described_by})
    artifacts.write_json(selection_out / "texts.json", texts)
    fit_page.write(Artifact(lines), target, records, texts, examples, samples, selection_out)
    selected = sum(record["selected"] for record in records)
    if not selected:
        raise ValueError(
            "no unlabelled line was accepted: bring lines that look like the labelled ones; the verdicts above say how each "
            f"source differs, and {selection_out / fit_page.PAGE} shows it"
        )
    verdict_counts = {verdict: sum(record["verdict"] == verdict for record in records) for verdict in VERDICTS}
    return {f"sources_{verdict.replace('-', '_')}": float(count) for verdict, count in verdict_counts.items()} | {
        "lines_selected": float(selected)
    }


def _describer(config: Config) -> tuple[Describe, str]:
    """What turns lines into features, and its name."""
    from maskocr_core.data.domain_fit import features

    if not (champion := _champion(config)):
        return features.described, "strokes"
    from maskocr_core.training import describing

    uri = champion.split(" ")[-1]
    return describing.Encoder(uri), uri
