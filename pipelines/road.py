"""The parts of the road that both pipelines go, as tasks of the pipeline that is being compiled."""

from typing import Any, NamedTuple

from kfp import dsl

from maskocr_components.evaluate import evaluate
from maskocr_components.finetune import finetune
from maskocr_components.finished import finished
from maskocr_components.fit import fit
from maskocr_components.ingest import ingest
from maskocr_components.pretrain import pretrain
from maskocr_components.quantize import quantize
from maskocr_components.register import register
from maskocr_components.validate import validate
from maskocr_pipelines.cluster import Nodes, on_cluster


class Accepted(NamedTuple):
    """Outputs of tasks: the lines with their data version as every later task takes them, and what is said of them."""

    lines: dict[str, Any]
    validation: Any
    selection: Any


def told(knobs: dict[str, Any]) -> dsl.ExitHandler:
    """What the tasks of a pipeline stand in, so that somebody hears how it ended."""
    return dsl.ExitHandler(on_cluster(finished(**knobs), memory="1Gi", hours=1), name="road")


def accepted(knobs: dict[str, Any], nodes: Nodes, data_uri: Any, transfer_uri: Any, protected_uris: Any) -> Accepted:
    """ingest → validate → fit. knobs: `recipe` and `overrides`, as every component takes them."""
    ingested = on_cluster(
        ingest(**knobs, data_uri=data_uri, transfer_uri=transfer_uri, protected_uris=protected_uris),
        memory="4Gi",
        hours=24,
    )
    # Every task that reads lines is told their version too: it stands in the task's inputs, and other lines are refused.
    lines = {"lines": ingested.outputs["lines_out"], "data_version": ingested.outputs["data_version"]}
    # Of all tasks this one alone is decided by its inputs: no model, no prefix that grows; what was forgotten changes the version.
    validated = on_cluster(validate(**knobs, **lines), memory="4Gi", hours=24, cached=True)
    validation = validated.outputs["validation_out"]
    fitted = on_cluster(fit(**knobs, **lines, validation=validation), memory="4Gi", hours=24, nodes=nodes)
    selection = fitted.outputs["selection_out"]
    return Accepted(lines, validation, selection)


def registered(
    knobs: dict[str, Any],
    nodes: Nodes,
    data: Accepted,
    *,
    transfer_uri: Any,
    encoder_uri: Any,
    codebook_uri: Any,
    start_uri: Any,
    costs_uri: Any,
    prices_uri: Any,
) -> dsl.PipelineTask:
    """quantize → pretrain → finetune → evaluate → register; the last task."""
    lines, selection = data.lines, {"selection": data.selection}
    quantized = on_cluster(
        quantize(**knobs, **lines, **selection, encoder_uri=encoder_uri, codebook_uri=codebook_uri),
        memory="8Gi",
        hours=24,
        nodes=nodes,
    )
    codebook = quantized.outputs["codebook_out"]
    pretrained = on_cluster(
        pretrain(**knobs, **lines, **selection, codebook=codebook, start_uri=start_uri),
        memory="16Gi",
        hours=14 * 24,
        nodes=nodes,
    )
    encoder = pretrained.outputs["encoder_out"]
    finetuned = on_cluster(
        finetune(**knobs, **lines, **selection, encoder=encoder, transfer_uri=transfer_uri),
        memory="16Gi",
        hours=7 * 24,
        nodes=nodes,
    )
    recognizers = finetuned.outputs["recognizers_out"]
    evaluated = on_cluster(
        evaluate(
            **knobs,
            **lines,
            validation=data.validation,
            **selection,
            recognizers=recognizers,
            costs_uri=costs_uri,
            prices_uri=prices_uri,
        ),
        memory="8Gi",
        hours=24,
        nodes=nodes,
    )
    evaluation = evaluated.outputs["evaluation_out"]
    return on_cluster(register(**knobs, **lines, recognizers=recognizers, evaluation=evaluation), memory="4Gi", hours=6)
