"""finetune as a KFP component."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output, component

from maskocr_components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def finetune(
    recipe: str,
    overrides: list,
    transfer_uri: str,
    data_version: str,
    lines: Input[Dataset],
    selection: Input[Dataset],
    encoder: Input[Model],
    recognizers_out: Output[Model],
    metrics: Output[Metrics],
):
    """Fine-tune from scratch, transfer, pre-trained and both."""
    from maskocr_core import config, stages

    numbers = stages.get("finetune")(
        config.load(recipe, overrides),
        transfer_uri=transfer_uri,
        data_version=data_version,
        lines=lines.path,
        selection=selection.path,
        encoder=encoder.path,
        recognizers_out=recognizers_out.path,
    )
    for name, value in numbers.items():
        metrics.log_metric(name, value)
