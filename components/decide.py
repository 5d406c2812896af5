"""decide as a KFP component."""

from typing import NamedTuple

from kfp.dsl import Artifact, Dataset, Input, Metrics, Output, component

from maskocr_components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def decide(
    recipe: str,
    overrides: list,
    data_version: str,
    lines: Input[Dataset],
    selection: Input[Dataset],
    claim: Input[Artifact],
    encoder_uri: str,
    decision_out: Output[Artifact],
    metrics: Output[Metrics],
) -> NamedTuple("Decision", [("go", bool), ("start_uri", str), ("codebook_uri", str), ("encoder_uri", str)]):
    """Decide whether what is new is enough to train again."""
    from maskocr_core import config, stages

    numbers = stages.get("decide")(
        config.load(recipe, overrides),
        data_version=data_version,
        lines=lines.path,
        selection=selection.path,
        claim=claim.path,
        encoder_uri=encoder_uri,
        decision_out=decision_out.path,
    )
    for name, value in numbers.items():
        metrics.log_metric(name, value)
    return stages.said(decision_out.path, "decision.json", "go", "start_uri", "codebook_uri", "encoder_uri")
