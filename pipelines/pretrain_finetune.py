"""raw lines → ingest → validate → fit → quantize → pretrain → finetune → evaluate → register."""

from kfp import dsl

from maskocr_components.evaluate import evaluate
from maskocr_components.finetune import finetune
from maskocr_components.fit import fit
from maskocr_components.ingest import ingest
from maskocr_components.pretrain import pretrain
from maskocr_components.quantize import quantize
from maskocr_components.register import register
from maskocr_components.validate import validate
from maskocr_pipelines.cluster import on_cluster


@dsl.pipeline(
    name="pretrain-finetune", description="From unlabelled lines and few labels to a registered text recogniser."
)
def pretrain_finetune(
    data_uri: str,
    transfer_uri: str = "",
    protected_uris: str = "",
    encoder_uri: str = "",
    codebook_uri: str = "",
    start_uri: str = "",
    costs_uri: str = "",
    prices_uri: str = "",
    recipe: str = "small",
    overrides: list = [],  # noqa: B006
):
    """Pre-train on the unlabelled lines that fit, fine-tune from every start, compare, and register the candidate.

    Args:
        data_uri: Your lines: a folder, an archive or s3://bucket/prefix with Parquet files, line images with .gt.txt beside them, or pages with PAGE XML or ALTO.
        transfer_uri: Labelled lines of a related domain in the same forms, or a trained recognizer (models:/name@alias); empty for none.
        protected_uris: Labelled lines that a new model must go on reading, in the same forms, separated by commas; empty for none.
        encoder_uri: What describes the steps that pre-training predicts, with codebook.features=encoder: a pre-trained encoder or a trained recognizer (folder or models:/name@alias); empty for none.
        codebook_uri: Codebook that is kept while it suits the lines (its folder, or models:/name@alias); empty for a new one.
        start_uri: Encoder of the same shape that pre-training goes on from (a pre-trained encoder or a trained recognizer, folder or models:/name@alias); empty for random weights.
        costs_uri: JSON file of what errors cost, by character class and field; empty for the one that comes with maskocr.
        prices_uri: JSON file of prices of labels and computing, for a verdict on the investment; empty for none.
        recipe: Named configuration: pilot, smoke, small or base.
        overrides: Changes to the recipe, such as ["pretrain.steps=20000", "sweep.budgets=[300, 1000]"].
    """
    knobs = {"recipe": recipe, "overrides": overrides}
    ingested = on_cluster(
        ingest(**knobs, data_uri=data_uri, transfer_uri=transfer_uri, protected_uris=protected_uris), memory="4Gi"
    )
    # Every task that reads lines is told their version too: it stands in the task's inputs, and other lines are refused.
    lines = {"lines": ingested.outputs["lines_out"], "data_version": ingested.outputs["data_version"]}
    validated = on_cluster(validate(**knobs, **lines), memory="4Gi")
    validation = validated.outputs["validation_out"]
    fitted = on_cluster(fit(**knobs, **lines, validation=validation), memory="4Gi")
    selection = fitted.outputs["selection_out"]
    quantized = on_cluster(
        quantize(**knobs, **lines, selection=selection, encoder_uri=encoder_uri, codebook_uri=codebook_uri),
        memory="8Gi",
    )
    codebook = quantized.outputs["codebook_out"]
    pretrained = on_cluster(
        pretrain(**knobs, **lines, selection=selection, codebook=codebook, start_uri=start_uri), memory="16Gi"
    )
    encoder = pretrained.outputs["encoder_out"]
    finetuned = on_cluster(
        finetune(**knobs, **lines, selection=selection, encoder=encoder, transfer_uri=transfer_uri), memory="16Gi"
    )
    recognizers = finetuned.outputs["recognizers_out"]
    evaluated = on_cluster(
        evaluate(
            **knobs,
            **lines,
            validation=validation,
            selection=selection,
            recognizers=recognizers,
            costs_uri=costs_uri,
            prices_uri=prices_uri,
        ),
        memory="8Gi",
    )
    registered = register(**knobs, **lines, recognizers=recognizers, evaluation=evaluated.outputs["evaluation_out"])
    on_cluster(registered, memory="4Gi")
