"""pretrain: accepted lines + codebook → encoder."""

from __future__ import annotations

from pathlib import Path

from maskocr_core.config import Config
from maskocr_core.stages import scratch, stage


@stage(reads=("data", "model", "mask", "pretrain"))
def pretrain(config: Config, *, lines: Path, selection: Path, codebook: Path, encoder_out: Path) -> dict[str, float]:
    """Pre-train the encoder by masked label prediction (Kišš & Hradiš 2025).

    lines: shards as ingest writes them.
    selection: accepted line ids and weights, as fit writes them.
    codebook: centroids (K, F) float32, as quantize writes them.
    encoder_out: the weights, their sizes, the training log, pictures of a few lines as the model learns them, and `saw.json`: digests of the documents that it was trained on.
    """
    import json
    import shutil

    from maskocr_core import artifacts
    from maskocr_core.artifacts import Artifact
    from maskocr_core.training import pretraining, saw
    from maskocr_core.training.distributed import data_parallel

    folder = scratch(encoder_out)
    figures = data_parallel(
        pretraining.train,
        (config, lines, selection, codebook, folder),
        workers=config.pretrain.workers,
        log=folder / "log.jsonl",
        what="pretrain",
        steps=config.pretrain.steps,
        registry=config.registry,
    )
    shutil.copytree(folder / "encoder", encoder_out, dirs_exist_ok=True)
    shutil.copy2(folder / "log.jsonl", encoder_out / "log.jsonl")
    pictures = encoder_out / "pictures"
    shutil.copytree(folder / "pictures", pictures, dirs_exist_ok=True)
    shown = json.loads((pictures / "shown.json").read_text())
    artifacts.write_json(encoder_out / "shown.json", {f"pictures/{name}": ids for name, ids in shown.items()})
    (pictures / "shown.json").unlink()
    if "codebook.png" in Artifact(codebook).names():
        artifacts.write_bytes(pictures / "codebook.png", Artifact(codebook).read_bytes("codebook.png"))
    saw.of_lines(Artifact(lines), Artifact(selection), ["unlabeled"]).write(encoder_out)
    kept = (
        "masked_loss", "visible_loss", "masked_accuracy", "probe_cer", "lines_per_second", "resumed_at", "steps"
    )  # fmt: skip
    return {name: figures[name] for name in kept if name in figures} | {"cpu_minutes": figures["cpu_seconds"] / 60}
