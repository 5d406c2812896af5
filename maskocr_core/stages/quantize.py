"""quantize: accepted lines → codebook."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from maskocr_core.config import Config
from maskocr_core.stages import kept, scratch, stage

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from maskocr_core.model.codebook import Codebook
    from maskocr_core.training.labelling import Say
    from maskocr_core.training.saw import Saw

MAX_BYTES = 1 << 30  # of the features that k-means sees at once, as float32


def _share_to_keep(config: Config) -> str:
    return (
        f"{config.retrain.keep_perplexity}"  # of that section nothing else: a rule on new lines makes no new codebook
    )


@stage(reads=("data", "codebook"), also=_share_to_keep, keeps=("codebook_out",))
def quantize(
    config: Config, *, lines: Path, selection: Path, encoder_uri: str = "", codebook_uri: str = "", codebook_out: Path
) -> dict[str, float]:
    """Cluster the steps of accepted lines by k-means: the labels that pre-training predicts.

    lines: shards as ingest writes them.
    selection: accepted line ids and weights, as fit writes them.
    encoder_uri: what describes the steps where codebook.features=encoder: folder of a pre-trained encoder or of a trained recognizer, or a registered model (models:/name@alias).
    codebook_uri: codebook to keep while it suits these lines (retrain.keep_perplexity): its folder, or a registered model whose run kept it (models:/name@alias); empty for a new one.
    codebook_out: centroids (K, F) float32 with the projection that leads to them, how many steps have each label, a picture of what each looks like, and `saw.json`: digests of the documents that the encoder which describes steps was trained on.
    """
    import time

    from maskocr_core import artifacts
    from maskocr_core.artifacts import Artifact
    from maskocr_core.data import admitted
    from maskocr_core.data import lines as schema
    from maskocr_core.services import mapping
    from maskocr_core.training import codebooks, labelling, origin, pictures

    parts = scratch(codebook_out) / "parts"
    inputs = Artifact(lines.absolute()), Artifact(selection.absolute())
    admitted.demand_made_for(inputs[1], inputs[0])
    features, seen = labelling.features_of(config, encoder_uri)
    shards = {schema.part_of(shard): shard for shard in admitted.accepted_shards(*inputs)}
    sample = labelling.shares(*inputs, list(shards.values()), config, features, MAX_BYTES)
    calls = {name: (*inputs, shard, config, sample) for name, shard in shards.items()}
    keep, own, seconds, came_of = False, 0.0, 0.0, {"labels": origin.named(encoder_uri)}
    if codebook_uri:
        given = _given(codebook_uri, config, scratch(codebook_out))
        book, own = given.book, given.perplexity
        say = labelling.Say("quantize: given", len(calls))
        sizes, portraits = _counted(book, calls, config, parts, codebook_out, say)
        seconds += say.cpu_seconds
        keep = _suits(_perplexity(sizes), own, config.retrain.keep_perplexity)
        came_of, seen = (given.came_of, given.saw) if keep else (came_of, seen)
    if not keep:
        say = labelling.Say("quantize", 2 * len(calls))
        mapping.over(
            labelling.sample, {name: (*call, features) for name, call in calls.items()}, parts / "steps", say=say
        )
        began = time.process_time()
        book = _clustered([parts / "steps" / name for name in calls], config, features)
        seconds += time.process_time() - began
        sizes, portraits = _counted(book, calls, config, parts, codebook_out, say)
        seconds += say.cpu_seconds
    codebooks.save(replace(book, portraits=portraits), config.data, codebook_out)
    artifacts.write_bytes(codebook_out / "codebook.png", pictures.png(pictures.of_codebook(portraits.numpy(), sizes)))
    artifacts.write_json(codebook_out / "cluster_sizes.json", sizes.tolist())
    origin.write(codebook_out, **came_of)
    seen.write(codebook_out)
    perplexity, empty = _perplexity(sizes), int((sizes == 0).sum())
    print(f"quantize: perplexity {perplexity:,.1f}, {empty} of {len(sizes):,} clusters empty", flush=True)
    return {
        "perplexity": perplexity,
        "own_perplexity": own if keep else perplexity,
        "kept": float(keep),
        "empty_clusters": float(empty),
        "most_frequent_label_share": float(sizes.max() / sizes.sum()),
        "smallest_cluster_share": float(sizes.min() / sizes.sum()),
        "steps": float(sizes.sum()),
        "cpu_minutes": seconds / 60,
    }


@dataclass(frozen=True)
class _Given:
    """A codebook from elsewhere: its perplexity on the lines that it was made of, the models that it came of, and what they saw."""

    book: Codebook
    perplexity: float
    came_of: dict[str, str | None]
    saw: Saw


def _given(uri: str, config: Config, folder: Path) -> _Given:
    """The codebook that `uri` names.

    Raises ValueError if there is none, or it is another than the configuration asks for.
    """
    from maskocr_core.artifacts import Artifact
    from maskocr_core.services import registered
    from maskocr_core.training import codebooks, origin, saw

    home = kept(registered.resolved(uri), "codebook", folder / "given") if uri.startswith("models:/") else Path(uri)
    if home is None:
        raise ValueError(f"the run of {uri} kept no codebook: leave codebook_uri out, or give a codebook's folder")
    artifact = Artifact(home)
    book = codebooks.load(artifact, config.data)
    if differing := codebooks.differences(artifact, config.codebook):
        raise ValueError(
            f"{uri}: its codebook is another one ({differing}): set codebook.* to match, or leave codebook_uri out"
        )
    # One that was kept before is still held against the lines that it was made of, or it might be kept for ever.
    own = artifact.metrics.get("own_perplexity", artifact.metrics["perplexity"])
    return _Given(
        book, own, origin.of(artifact), saw.read(home) if config.codebook.features == "encoder" else saw.Saw()
    )


def _suits(perplexity: float, own: float, least: float) -> bool:
    keep = perplexity >= least * own
    print(
        f"quantize: the given codebook has perplexity {perplexity:,.1f} on these lines, {perplexity / own:.0%} of that "
        f"on its own, and {'is kept' if keep else 'is not kept'} (retrain.keep_perplexity={least:g})",
        flush=True,
    )
    return keep


def _counted(
    book: Codebook, calls: dict[str, tuple], config: Config, parts: Path, codebook_out: Path, say: Say
) -> tuple[np.ndarray, Tensor]:
    """(K,) int64 how often each label comes in the sampled lines, and (K, H, window) what it looks like there."""
    import torch

    from maskocr_core import artifacts
    from maskocr_core.services import mapping
    from maskocr_core.training import codebooks, labelling

    codebooks.save(replace(book, portraits=None), config.data, codebook_out)
    # Counts of another codebook, of a run that was killed on another kind of processor, are not these.
    counts = parts / f"sizes-{artifacts.sha256(codebook_out / 'codebook.safetensors')[:16]}"
    mapping.over(labelling.count, {name: (*call, book) for name, call in calls.items()}, counts, say=say)
    shape = len(book.centroids), config.data.height, config.codebook.window
    sizes, ink = labelling.counted([counts / name for name in calls], *shape)
    return sizes, torch.from_numpy(ink / sizes.clip(min=1)[:, None, None]).float()


def _perplexity(sizes: np.ndarray) -> float:
    import numpy as np

    from maskocr_core.model import codebook

    return codebook.perplexity(np.repeat(np.arange(len(sizes)), sizes), len(sizes))


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
