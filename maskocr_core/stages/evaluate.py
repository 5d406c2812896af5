"""evaluate: recognisers + test lines (+ champion) → scores, report, verdict."""

from __future__ import annotations

from pathlib import Path

from maskocr_core.config import Config
from maskocr_core.stages import scratch, stage


def _champion_version(config: Config) -> str:
    from maskocr_core.services import registered, tracking

    return f"{tracking.uri()} {registered.version_of(config.registry, 'champion') or 'none'}"


@stage(reads=("data", "gate", "registry"), also=_champion_version)
def evaluate(
    config: Config,
    *,
    lines: Path,
    validation: Path,
    selection: Path,
    recognizers: Path,
    costs_uri: str = "",
    prices_uri: str = "",
    evaluation_out: Path,
) -> dict[str, float]:
    """Read the test lines with every start and with the champion, if there is one; compare, and give a verdict.

    lines: shards as ingest writes them.
    validation: what validate has to say of the data, for the report and the model card.
    selection: admitted line ids and the verdicts on sources, as fit writes them.
    recognizers: the best recognizers of each start, as finetune writes them.
    costs_uri: JSON file of what errors cost, by character class and field (docs/cost.md); empty for the one that comes with maskocr.
    prices_uri: JSON file of prices of labels and computing (docs/cost.md), for a verdict on the investment; empty for none.
    evaluation_out: `summary.json`, `predictions.parquet`, `report.html`, `report.png`, `confidence.png` where confidence is usable, and `shown.json`: which lines they show.
    """
    import base64

    from maskocr_core import artifacts
    from maskocr_core.artifacts import Artifact
    from maskocr_core.data import lines as schema
    from maskocr_core.judging import prices, report, weights
    from maskocr_core.services import compared, storage
    from maskocr_core.training import judged, reading

    folder = Artifact(recognizers).local(scratch(evaluation_out) / "recognizers")
    champion, version = judged.champion_of(config.registry)
    inputs = judged.Inputs(Artifact(lines), Artifact(validation), Artifact(selection), folder, champion, version)
    source = inputs.of_split("test", config.data)
    runs = Artifact(recognizers).read_json("runs.json")
    priced = scratch(evaluation_out) / "priced"
    costs = weights.load(storage.fetched(costs_uri, priced) if costs_uri else None)
    money = prices.load(storage.fetched(prices_uri, priced)) if prices_uri else None
    guarded = judged.guarded(source, config, inputs.validation)
    readings = reading.read_starts(folder, runs["runs"], source)
    against = [judged.read_champion(champion, source)] if champion else []
    summary, plot = _summary(config, inputs, runs, source, readings, against, guarded, costs, money)
    uses = compared.uses_of(config.registry, summary["test_version"]) + 1
    summary |= {"test_uses": uses, "notes": summary["notes"] + judged.worn(uses, config.gate.test_uses)}
    artifacts.write_json(evaluation_out / "summary.json", summary)
    schema.write(reading.predictions(source, readings + against), evaluation_out / "predictions.parquet")
    # Pictures stand in the page alone, which erasure removes whole: of a summary it takes out lines one by one.
    pages = {"pictures": reading.pictures(Artifact(recognizers)), "confidence_plot": base64.b64encode(plot).decode()}
    report.render(summary | pages, evaluation_out)
    if plot:
        artifacts.write_bytes(evaluation_out / "confidence.png", plot)
    named = {row["line_id"] for row in (*summary["examples"], *summary["confusions"])}
    shown = {"report.html": named | reading.pictured(Artifact(recognizers)), "summary.json": named}
    artifacts.write_json(evaluation_out / "shown.json", {name: sorted(ids) for name, ids in shown.items()})
    return {f"{row['start']}_cer": row["cer"]["all"]["value"] for row in summary["starts"]} | {
        "test_lines": float(len(source)),
        "test_documents": float(summary["documents"]),
    }


def _summary(config, inputs, runs, source, readings, against, guarded, weights, prices) -> tuple[dict, bytes]:
    """Everything that report, MLflow and the printed table share, and the plot of confidence, empty where that is not usable."""
    from maskocr_core.judging import comparison, value
    from maskocr_core.training import judged, reading

    candidate = reading.candidate(runs["runs"])
    chosen = candidate.of(next(row for row in readings if row.start == candidate.start))
    test, fit = judged.of(source, config), inputs.selection.read_json("verdicts.json")
    smaller = reading.read_smaller_budgets(inputs.recognizers, runs["runs"], source)
    forgetting, protected = judged.read_old(inputs, runs, config, candidate)
    if against:
        protected |= judged.of_slices(guarded, source, config, chosen, against[0])
    checks = comparison.protected(protected, config.gate.margin, config.gate.small_slices == "block")
    checks += judged.data_checks(inputs, source, candidate, fit)
    costs, costly = value.costs(test, readings, chosen, against[0] if against else None, weights)
    trust = judged.confidence(inputs, source, chosen, inputs.recognizers / candidate.folder, config, weights)
    champion = against[0].by_mark["all"][0] if against else None
    checks = [*checks, *costly, trust.check]
    rows, verdict = comparison.compare(test, readings, chosen, champion, checks)
    starts = [reading.with_costs(row, runs) for row in rows]
    efficiency = comparison.efficiency(test, readings + smaller)
    measured = value.points(efficiency, config.gate.confidence)
    return {
        "verdict": verdict,
        "candidate": candidate.start,
        "candidate_seed": candidate.seed,
        "candidate_cer": test.interval(chosen.by_mark["all"]),
        "champion": inputs.champion_version,
        "data_version": inputs.lines.version,
        "test_version": judged.version_of(source),
        "selection_version": inputs.selection.version,
        "documents": len(set(source.documents)),
        "lines": len(source),
        "confidence": config.gate.confidence,
        "starts": starts,
        "sizes": reading.sizes(runs),
        "efficiency": efficiency,
        "curves": value.label_efficiency(measured, prices.target_cer if prices else None),
        "returns": value.returns(measured, value.compute_of(starts), prices) if prices else [],
        "priced": prices is not None,
        "costs": costs,
        "calibration": trust.said,
        "forgetting": forgetting,
        **judged.found(source, chosen, config, inputs.validation),
        "examples": reading.examples(source, readings, chosen),
        "fit": fit,
        "notes": reading.notes(inputs.lines, runs) + inputs.validation.read_json("verdict.json")["notes"],
    }, trust.plot
