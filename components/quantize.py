"""quantize as a KFP component."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Output, component

from maskocr_components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def quantize(
    recipe: str,
    overrides: list,
    data_version: str,
    lines: Input[Dataset],
    selection: Input[Dataset],
    encoder_uri: str,
    codebook_uri: str,
    codebook_out: Output[Artifact],
    metrics: Output[Metrics],
):
    """Cluster the steps of accepted lines: the labels of pre-training."""
    from maskocr_core import config, stages

    numbers = stages.get("quantize")(
        config.load(recipe, overrides),
        data_version=data_version,
        lines=lines.path,
        selection=selection.path,
        encoder_uri=encoder_uri,
        codebook_uri=codebook_uri,
        codebook_out=codebook_out.path,
    )
    for name, value in numbers.items():
        metrics.log_metric(name, value)
