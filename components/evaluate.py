"""evaluate as a KFP component."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output, component

from maskocr_components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    recipe: str,
    overrides: list,
    data_version: str,
    lines: Input[Dataset],
    validation: Input[Artifact],
    selection: Input[Dataset],
    recognizers: Input[Model],
    costs_uri: str,
    prices_uri: str,
    evaluation_out: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
):
    """Compare the starts, and the champion, on the test lines; the report is shown in Kubeflow's own UI too."""
    from maskocr_core import config, stages

    numbers = stages.get("evaluate")(
        config.load(recipe, overrides),
        data_version=data_version,
        lines=lines.path,
        validation=validation.path,
        selection=selection.path,
        recognizers=recognizers.path,
        costs_uri=costs_uri,
        prices_uri=prices_uri,
        evaluation_out=evaluation_out.path,
    )
    for name, value in numbers.items():
        metrics.log_metric(name, value)
    report.uri = f"{evaluation_out.uri}/report.html"  # the same file: a copy would have to be found to be forgotten
