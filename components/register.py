"""register as a KFP component."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output, component

from maskocr_components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def register(
    recipe: str,
    overrides: list,
    data_version: str,
    lines: Input[Dataset],
    recognizers: Input[Model],
    evaluation: Input[Artifact],
    registration_out: Output[Artifact],
    metrics: Output[Metrics],
):
    """Log the comparison and register the candidate in MLflow."""
    from maskocr_core import config, stages

    numbers = stages.get("register")(
        config.load(recipe, overrides),
        data_version=data_version,
        lines=lines.path,
        recognizers=recognizers.path,
        evaluation=evaluation.path,
        registration_out=registration_out.path,
    )
    for name, value in numbers.items():
        metrics.log_metric(name, value)
