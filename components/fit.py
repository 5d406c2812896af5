"""fit as a KFP component."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Output, component

from maskocr_components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def fit(
    recipe: str,
    overrides: list,
    data_version: str,
    lines: Input[Dataset],
    validation: Input[Artifact],
    selection_out: Output[Dataset],
    metrics: Output[Metrics],
):
    """Judge whether each unlabelled source fits the target domain, and select lines."""
    from maskocr_core import config, stages

    numbers = stages.get("fit")(
        config.load(recipe, overrides),
        data_version=data_version,
        lines=lines.path,
        validation=validation.path,
        selection_out=selection_out.path,
    )
    for name, value in numbers.items():
        metrics.log_metric(name, value)
