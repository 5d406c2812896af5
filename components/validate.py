"""validate as a KFP component."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Output, component

from maskocr_components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def validate(
    recipe: str,
    overrides: list,
    data_version: str,
    lines: Input[Dataset],
    validation_out: Output[Artifact],
    metrics: Output[Metrics],
):
    """Check the lines with Great Expectations and quarantine bad ones."""
    from maskocr_core import config, stages

    numbers = stages.get("validate")(
        config.load(recipe, overrides),
        data_version=data_version,
        lines=lines.path,
        validation_out=validation_out.path,
    )
    for name, value in numbers.items():
        metrics.log_metric(name, value)
