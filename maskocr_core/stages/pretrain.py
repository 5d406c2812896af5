"""pretrain: accepted lines + codebook → encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from maskocr_core.config import Config
from maskocr_core.stages import scratch, stage

if TYPE_CHECKING:
    from maskocr_core.training.saw import Saw


@stage(reads=("data", "model", "mask", "pretrain"))
def pretrain(
    config: Config, *, lines: Path, selection: Path, codebook: Path, start_uri: str = "", encoder_out: Path
) -> dict[str, float]:
    """Pre-train the encoder by masked label prediction (Kišš & Hradiš 2025).

    lines: shards as ingest writes them.
    selection: accepted line ids and weights, as fit writes them.
    codebook: centroids (K, F) float32, as quantize writes them.
    start_uri: encoder of the shape of `model` whose weights its training begins with: folder of a pre-trained encoder or of a trained recognizer, or a registered model (models:/name@alias); empty for random weights.
    encoder_out: the weights, their sizes, the training log, the same of other sizes (`pretrain.sizes`) in `sizes/`, pictures of a few lines as the model learns them, and `saw.json`: digests of the documents that it, and what made its labels, was trained on.
    """
    import json
    import shutil

    from maskocr_core import artifacts
    from maskocr_core.artifacts import Artifact
    from maskocr_core.services.post import LOG, PICTURES
    from maskocr_core.training import checkpoint, origin, pretraining, saw
    from maskocr_core.training.distributed import data_parallel

    folder = scratch(encoder_out)
    start, seen = _start(start_uri, config, folder / "start") if start_uri else (None, saw.Saw())
    # Before training: what is forgotten while it runs was learnt from all the same.
    seen |= saw.read(codebook) | saw.of_lines(Artifact(lines), Artifact(selection), ["unlabeled"])
    labels, label_seconds = _labels(config, lines, selection, codebook, folder)

    def train(size: str, folder: Path, out: Path) -> dict[str, float]:
        """An encoder of one size and its log in `out`; what it came to."""
        figures = data_parallel(
            pretraining.train,
            (
                config.model_copy(update={"model": config.model.sized(size)}),
                lines,
                selection,
                codebook,
                folder,
                None if size else start,
                labels,
            ),
            workers=config.pretrain.workers,
            log=folder / LOG,
            what=f"pretrain {size}".rstrip(),
            steps=config.pretrain.steps,
            registry=config.registry,
        )
        shutil.copytree(folder / "encoder", out, dirs_exist_ok=True)
        shutil.copy2(folder / LOG, out / LOG)
        kept = (
            "masked_loss", "visible_loss", "masked_accuracy", "probe_cer", "lines_per_second", "resumed_at", "steps"
        )  # fmt: skip
        found = {name: figures[name] for name in kept if name in figures}
        # A codebook of an earlier version does not say what it cost.
        labelled = Artifact(codebook).metrics.get("cpu_minutes", 0.0) + label_seconds / 60
        return found | {
            "cpu_minutes": figures["cpu_seconds"] / 60 + labelled,
            "gpu_minutes": figures["gpu_seconds"] / 60,
        }

    figures = train("", folder, encoder_out)
    for size in config.pretrain.sizes:
        place = f"{checkpoint.SIZES}/{size}"
        figures |= {f"{name}_{size}": value for name, value in train(size, folder / place, encoder_out / place).items()}
    pictures = encoder_out / PICTURES
    shutil.copytree(folder / PICTURES, pictures, dirs_exist_ok=True)
    shown = json.loads((pictures / "shown.json").read_text())
    artifacts.write_json(encoder_out / "shown.json", {f"{PICTURES}/{name}": ids for name, ids in shown.items()})
    (pictures / "shown.json").unlink()
    if "codebook.png" in Artifact(codebook).names():
        artifacts.write_bytes(pictures / "codebook.png", Artifact(codebook).read_bytes("codebook.png"))
    origin.write(encoder_out, encoder=origin.named(start_uri), **origin.of(Artifact(codebook)))
    seen.write(encoder_out)
    return figures


def _labels(config: Config, lines: Path, selection: Path, codebook: Path, folder: Path) -> tuple[Path | None, float]:
    """The labels of all lines where it pays to store them, and the CPU seconds that they cost; None where it does not."""
    from maskocr_core.artifacts import Artifact
    from maskocr_core.data import batches
    from maskocr_core.training import codebooks, stored_labels

    inputs = Artifact(lines.absolute()), Artifact(selection.absolute())
    book = codebooks.load(Artifact(codebook), config.data)
    if not stored_labels.pay(config, book, len(batches.Stream(*inputs, "unlabeled", config.data))):
        return None, 0.0
    return stored_labels.store(config, *inputs, book, folder)


def _start(uri: str, config: Config, folder: Path) -> tuple[Path, Saw]:
    """The encoder of `uri` as an artifact in `folder`, which workers elsewhere get too, and what it was trained on.

    Raises ValueError, naming `uri`, if there is none or it has another shape than the one to be trained.
    """
    import shutil

    from maskocr_core import artifacts
    from maskocr_core.training import checkpoint, saw

    home = checkpoint.folder_at(uri)
    encoder = checkpoint.encoder_in(home, uri, config.data)
    if differing := checkpoint.differences(encoder.shape, config.model, config.data, "there"):
        raise ValueError(
            f"{uri}: its encoder has another shape ({differing}): set model.* to match, or leave start_uri out"
        )
    shutil.rmtree(folder, ignore_errors=True)  # an earlier attempt may have left half of it
    checkpoint.save_encoder(encoder, config.model, config.data, folder)
    artifacts.finish(folder, kind="encoder", config={}, metrics={})
    print(f"pretrain: goes on from the encoder of {uri}", flush=True)
    return folder, saw.of_model(home)
