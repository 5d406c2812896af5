"""pretrain as a KFP component."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output, component

from maskocr_components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def pretrain(
    recipe: str,
    overrides: list,
    data_version: str,
    lines: Input[Dataset],
    selection: Input[Dataset],
    codebook: Input[Artifact],
    start_uri: str,
    encoder_out: Output[Model],
    metrics: Output[Metrics],
):
    """Masked-label pre-training of the encoder."""
    from maskocr_core import config, stages

    numbers = stages.get("pretrain")(
        config.load(recipe, overrides),
        data_version=data_version,
        lines=lines.path,
        selection=selection.path,
        codebook=codebook.path,
        start_uri=start_uri,
        encoder_out=encoder_out.path,
    )
    for name, value in numbers.items():
        metrics.log_metric(name, value)
