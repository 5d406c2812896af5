"""quantize: accepted lines → codebook."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from maskocr_core.config import Config
from maskocr_core.stages import scratch, stage

if TYPE_CHECKING:
    from torch import nn

    from maskocr_core.model.codebook import Codebook

MAX_BYTES = 1 << 30  # of the features that k-means sees at once, as float32


@stage(reads=("data", "codebook"))
def quantize(
    config: Config, *, lines: Path, selection: Path, encoder_uri: str = "", codebook_out: Path
) -> dict[str, float]:
    """Cluster the steps of accepted lines by k-means: the labels that pre-training predicts.

    lines: shards as ingest writes them.
    selection: accepted line ids and weights, as fit writes them.
    encoder_uri: what describes the steps where codebook.features=encoder: folder of a pre-trained encoder or of a trained recognizer, or a registered model (models:/name@alias).
    codebook_out: centroids (K, F) float32 with the projection that leads to them, and a picture of what each label looks like.
    """
    import numpy as np
    import torch

    from maskocr_core import artifacts
    from maskocr_core.artifacts import Artifact
    from maskocr_core.data import lines as schema
    from maskocr_core.model import codebook
    from maskocr_core.progress import Progress
    from maskocr_core.services import mapping
    from maskocr_core.training import checkpoint, labelling, pictures

    settings, parts = config.codebook, scratch(codebook_out) / "parts"
    inputs = Artifact(lines.absolute()), Artifact(selection.absolute())
    schema.demand_made_for(inputs[1], inputs[0])
    features = labelling.features_of(config, encoder_uri)
    shards = {
        schema.part_of(shard): shard
        for shard in schema.shards(inputs[0], "unlabeled")
        if schema.count_selected(*inputs, shard)
    }
    sample = labelling.shares(*inputs, list(shards.values()), config, features, MAX_BYTES)
    progress, done = Progress("quantize", total=2 * len(shards)), []

    def say(name: str, came: dict[str, int]) -> None:
        done.append(came["lines"])
        progress.update(len(done), lines=sum(done))

    calls = {name: (*inputs, shard, config, sample) for name, shard in shards.items()}
    mapping.over(labelling.sample, {name: (*call, features) for name, call in calls.items()}, parts / "steps", say=say)
    book = _clustered([parts / "steps" / name for name in calls], config, features)
    checkpoint.save_codebook(book, config.data, codebook_out)
    # Counts of another codebook, of a run that was killed on another kind of processor, are not these.
    counts = parts / f"sizes-{artifacts.sha256(codebook_out / 'codebook.safetensors')[:16]}"
    mapping.over(labelling.count, {name: (*call, book) for name, call in calls.items()}, counts, say=say)
    sizes = sum((np.load(counts / name / "sizes.npy") for name in calls), np.zeros(settings.clusters, np.int64))
    ink = sum(np.load(counts / name / "ink.npy") for name in calls)
    portraits = torch.from_numpy(ink / sizes.clip(min=1)[:, None, None]).float()
    checkpoint.save_codebook(replace(book, portraits=portraits), config.data, codebook_out)
    perplexity = codebook.perplexity(np.repeat(np.arange(settings.clusters), sizes), settings.clusters)
    empty = int((sizes == 0).sum())
    artifacts.write_bytes(codebook_out / "codebook.png", pictures.png(pictures.of_codebook(portraits.numpy(), sizes)))
    progress.done(len(done), perplexity=perplexity, empty_clusters=empty)
    return {
        "perplexity": perplexity,
        "empty_clusters": float(empty),
        "most_frequent_label_share": float(sizes.max() / sizes.sum()),
        "smallest_cluster_share": float(sizes.min() / sizes.sum()),
        "steps": float(sizes.sum()),
    }


def _clustered(parts: list[Path], config: Config, features: nn.Module) -> Codebook:
    """The codebook of the features in all parts."""
    from maskocr_core.model import codebook
    from maskocr_core.training import labelling

    settings = config.codebook
    steps = labelling.stacked(parts)
    print(f"quantize: k-means of {len(steps):,} steps into {settings.clusters:,} clusters", flush=True)
    return codebook.fit(
        steps,
        height=config.data.height,
        features=features,
        components=settings.components,
        clusters=settings.clusters,
        seed=settings.seed,
    )
