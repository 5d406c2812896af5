"""fresh as a KFP component, and what ends a claim."""

from typing import NamedTuple

from kfp.dsl import Artifact, Input, Metrics, Output, component

from maskocr_components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def fresh(
    recipe: str,
    overrides: list,
    data_uri: str,
    claims_uri: str,
    labelled_uri: str,
    claim_out: Output[Artifact],
    metrics: Output[Metrics],
) -> NamedTuple("Fresh", [("new", bool), ("data_uri", str)]):
    """Claim the objects that are new since the last claim."""
    from maskocr_core import config, stages

    numbers = stages.get("fresh")(
        config.load(recipe, overrides),
        data_uri=data_uri,
        claims_uri=claims_uri,
        labelled_uri=labelled_uri,
        claim_out=claim_out.path,
    )
    for name, value in numbers.items():
        metrics.log_metric(name, value)
    return stages.said(claim_out.path, "claim.json", "new", "data_uri")


@component(base_image=IMAGE, install_kfp_package=False)
def conclude(claim: Input[Artifact], registration: Input[Artifact]):
    """Say of a claim that it is done: a model made of its objects is registered."""
    from maskocr_core.stages import fresh

    fresh.conclude(claim.path, registration.path)
