"""raw lines → ingest → validate → fit → quantize → pretrain → finetune → evaluate → register."""

from kfp import dsl, kubernetes

from maskocr_components.evaluate import evaluate
from maskocr_components.finetune import finetune
from maskocr_components.fit import fit
from maskocr_components.ingest import ingest
from maskocr_components.pretrain import pretrain
from maskocr_components.quantize import quantize
from maskocr_components.register import register
from maskocr_components.validate import validate

# Facts of the cluster, not of the method: infra/ makes the objects of these names.
SETTINGS, CREDENTIALS = "maskocr-settings", "maskocr-s3"


def _on_cluster(task: dsl.PipelineTask, memory: str) -> dsl.PipelineTask:
    """Resources, retries, settings and secrets of a task; a local run has none of them."""
    # KFP's cache sees the names of data and image, not what lies behind them; stages know by themselves what was done.
    task.set_caching_options(False)
    task.set_cpu_request("2").set_memory_request(memory).set_memory_limit(memory)
    task.set_retry(num_retries=2, backoff_duration="60s", backoff_factor=2.0)
    kubernetes.use_config_map_as_env(
        task, SETTINGS, {name: name for name in ("MLFLOW_TRACKING_URI", "MASKOCR_STORE", "AWS_ENDPOINT_URL")}
    )
    kubernetes.use_secret_as_env(
        task, CREDENTIALS, {name: name for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    )
    # All tasks of a KFP run find one MLflow run by this name.
    kubernetes.use_field_path_as_env(task, "MASKOCR_RUN", "metadata.labels['pipeline/runid']")
    kubernetes.set_security_context(task, run_as_user=1000, run_as_group=1000, run_as_non_root=True)
    return task


@dsl.pipeline(
    name="pretrain-finetune", description="From unlabelled lines and few labels to a registered text recogniser."
)
def pretrain_finetune(
    data_uri: str,
    transfer_uri: str = "",
    protected_uris: str = "",
    encoder_uri: str = "",
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
        costs_uri: JSON file of what errors cost, by character class and field; empty for the one that comes with maskocr.
        prices_uri: JSON file of prices of labels and computing, for a verdict on the investment; empty for none.
        recipe: Named configuration: pilot, smoke, small or base.
        overrides: Changes to the recipe, such as ["pretrain.steps=20000", "sweep.budgets=[300, 1000]"].
    """
    knobs = {"recipe": recipe, "overrides": overrides}
    ingested = _on_cluster(
        ingest(**knobs, data_uri=data_uri, transfer_uri=transfer_uri, protected_uris=protected_uris), memory="4Gi"
    )
    # Every task that reads lines is told their version too: it stands in the task's inputs, and other lines are refused.
    lines = {"lines": ingested.outputs["lines_out"], "data_version": ingested.outputs["data_version"]}
    validated = _on_cluster(validate(**knobs, **lines), memory="4Gi")
    validation = validated.outputs["validation_out"]
    fitted = _on_cluster(fit(**knobs, **lines, validation=validation), memory="4Gi")
    selection = fitted.outputs["selection_out"]
    quantized = _on_cluster(quantize(**knobs, **lines, selection=selection, encoder_uri=encoder_uri), memory="8Gi")
    pretrained = _on_cluster(
        pretrain(**knobs, **lines, selection=selection, codebook=quantized.outputs["codebook_out"]), memory="16Gi"
    )
    encoder = pretrained.outputs["encoder_out"]
    finetuned = _on_cluster(
        finetune(**knobs, **lines, selection=selection, encoder=encoder, transfer_uri=transfer_uri), memory="16Gi"
    )
    recognizers = finetuned.outputs["recognizers_out"]
    evaluated = _on_cluster(
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
    _on_cluster(registered, memory="4Gi")
