"""finetune: labelled lines + encoder + transfer lines or model → the best recognisers of every start."""

from __future__ import annotations

from pathlib import Path

from maskocr_core.config import Config
from maskocr_core.stages import stage, work_folder
from maskocr_core.stages.keys import code_version


def _of_intervals(config: Config) -> str:
    return f"{config.gate.confidence:g} {config.gate.min_documents}"  # the calibration's, which `evaluate` goes by


@stage(reads=("data", "model", "sweep"), also=_of_intervals)
def finetune(
    config: Config, *, lines: Path, selection: Path, encoder: Path, transfer_uri: str = "", recognizers_out: Path
) -> dict[str, float]:
    """Fine-tune from scratch, transfer, pre-trained and both, by one rule: same steps, same validations, best on validation.

    lines: shards as ingest writes them.
    selection: admitted line ids, as fit writes them.
    encoder: the pre-trained encoder, as pretrain writes it, with those of other sizes if it made any: every start is made in each.
    transfer_uri: as ingest takes it: labelled lines are read from `lines`; a trained recognizer is read from here.
    recognizers_out: `runs.json` with every run's curve, and the best recognizers at ¼, ½ and all of the steps, with `saw.json`: digests of the documents that each was trained on; `calibration.json` beside the candidate: the one that may be registered.
    """
    from maskocr_core import artifacts
    from maskocr_core.artifacts import Artifact
    from maskocr_core.data import admitted, batches, readers
    from maskocr_core.data import lines as schema
    from maskocr_core.training import calibrating, checkpoint, finetuning, origin, reading, saw, sweep

    code = code_version("finetune")
    # Once, before training: what is forgotten while it runs makes other lines of them.
    versions = schema.version(Artifact(lines)), Artifact(selection).version

    def place(run: finetuning.Run) -> Path:
        return work_folder() / "runs" / run.key(config, *versions, code)

    def carry_out(runs: list) -> list[dict]:
        return sweep.carry_out(runs, config, lines, selection, [place(run) for run in runs])

    given = readers.is_model(transfer_uri)
    has_transfer_lines = not given and schema.count(Artifact(lines), "transfer-train") > 0
    labelled = admitted.selected(Artifact(lines), Artifact(selection), "train").num_rows
    config.demand_old_lines(given)
    config = sweep.within(config, labelled)
    starts = sweep.possible_starts(config.sweep.starts, has_transfer_lines, given)
    bases = sweep.transfer_runs(starts, config, encoder) if has_transfer_lines else []
    recognizers = {(run.name.removesuffix(" base"), run.size): place(run) / "all" for run in bases}
    old = checkpoint.folder_at(transfer_uri) if given and "transfer" in starts else None
    if old:
        recognizers["transfer", ""] = old
    sweep.demand_starts(starts, config, encoder, old)
    # Before training: what is forgotten while it runs was learnt from all the same.
    seen = {"target": saw.of_lines(Artifact(lines), Artifact(selection), sweep.TARGET), "encoder": saw.read(encoder)}
    seen["transfer"] = (
        saw.read(old.parent) if old else saw.of_lines(Artifact(lines), Artifact(selection), sweep.TRANSFER)
    )
    based = carry_out(bases)
    runs = sweep.runs(starts, config, encoder, recognizers)
    results = carry_out(runs)
    best = sweep.choose(runs, results)
    for run in best:
        kept = recognizers_out / sweep.folder_of(run, runs)
        sweep.collect(place(run), kept)
        sweep.seen(run.name, seen).write(kept)
    if old:
        kept = recognizers_out / "transfer-base"
        checkpoint.copy_recognizer(old, kept / "all")
        sweep.seen_before("transfer", seen).write(kept)
    for run in sweep.of_chosen(bases, best, runs):
        kept = recognizers_out / run.name.replace(" ", "-")
        sweep.collect(place(run), kept, ("all",))
        sweep.seen_before(run.name.removesuffix(" base"), seen).write(kept)
    reading.keep_pictures(Artifact(encoder), recognizers_out)
    made = sweep.summary(runs, results, best, based, Artifact(encoder), config)
    made["origins"] = origin.of(Artifact(encoder)) | {"transfer": origin.named(transfer_uri) if given else None}
    validation = batches.Lines(
        Artifact(lines), admitted.selected(Artifact(lines), Artifact(selection), "val"), config.data
    )
    candidate = recognizers_out / reading.candidate(made["runs"]).folder / "all"
    calibrating.calibrate(candidate, validation, config.gate.confidence, config.gate.min_documents)
    artifacts.write_json(recognizers_out / "runs.json", made)
    return {
        f"{run.name}_validation_cer": results[runs.index(run)]["validation_cer"]["all"]
        for run in best
        if run.seed == config.sweep.seeds[0] and sweep.has_all_labels(run, runs)
    } | {
        "cpu_minutes": sum(result["cpu_seconds"] for result in results) / 60,
        "gpu_minutes": sum(result["gpu_seconds"] for result in results) / 60,
        "resumed_at": max(result["resumed_at"] for result in results),
    }
