"""quantize: accepted lines → codebook."""

from __future__ import annotations

from pathlib import Path

from maskocr_core.config import STEP, Config
from maskocr_core.stages import stage

MAX_WINDOWS = 400_000


@stage(reads=("data", "codebook"))
def quantize(config: Config, *, lines: Path, selection: Path, codebook_out: Path) -> dict[str, float]:
    """Cluster the steps of accepted lines by k-means: the labels that pre-training predicts.

    lines: shards as ingest writes them.
    selection: accepted line ids and weights, as fit writes them.
    codebook_out: centroids (K, F) float32 with the projection that leads to them.
    """
    import numpy as np

    from maskocr_core.artifacts import Artifact
    from maskocr_core.data import batches
    from maskocr_core.data import lines as schema
    from maskocr_core.model import codebook
    from maskocr_core.progress import Progress
    from maskocr_core.training import checkpoint

    settings = config.codebook
    table = schema.selected(Artifact(lines), Artifact(selection), "unlabeled")
    random = np.random.default_rng(settings.seed)
    chosen = np.sort(random.permutation(table.num_rows)[: settings.sample_lines])
    source = batches.Lines(Artifact(lines), table.take(chosen), config.data)
    progress = Progress("quantize", total=len(source))
    # Windows are some 2 KB each: a share of every batch is kept, so that long and short lines alike are in the sample.
    share = min(1.0, MAX_WINDOWS / (source.widths.sum() / STEP))
    pixels = []
    for done, (_, batch) in enumerate(source.in_order(32), 1):
        windows = codebook.windows(batch.ink, settings.window)[batch.valid]
        pixels.append(windows[random.random(len(windows)) < share].numpy())
        progress.update(min(done * 32, len(source)))
    stacked = np.concatenate(pixels)
    pixels.clear()
    print(f"quantize: k-means of {len(stacked):,} steps into {settings.clusters:,} clusters", flush=True)
    book = codebook.fit(
        stacked,
        height=config.data.height,
        window=settings.window,
        components=settings.components,
        clusters=settings.clusters,
        seed=settings.seed,
    )
    checkpoint.save_codebook(book, codebook_out)
    labels = np.concatenate([book.labels(batch.ink)[batch.valid].numpy() for _, batch in source.in_order(32)])
    sizes = np.bincount(labels, minlength=settings.clusters)
    progress.done(
        len(source), perplexity=codebook.perplexity(labels, settings.clusters), empty_clusters=int((sizes == 0).sum())
    )
    return {
        "perplexity": codebook.perplexity(labels, settings.clusters),
        "empty_clusters": float((sizes == 0).sum()),
        "most_frequent_label_share": float(sizes.max() / sizes.sum()),
        "steps": float(len(labels)),
    }
