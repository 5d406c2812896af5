"""raw lines → ingest → validate → fit → quantize → pretrain → finetune → evaluate → register."""

from kfp import dsl

from maskocr_pipelines import road
from maskocr_pipelines.cluster import Nodes


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
    node_selector: dict = {},  # noqa: B006
    tolerations: list = [],  # noqa: B006
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
        recipe: Named configuration: pilot, smoke, laptop, small, base, or paper-3m to paper-86m.
        overrides: Changes to the recipe, such as ["pretrain.steps=20000", "sweep.budgets=[300, 1000]"].
        node_selector: Labels that the nodes of tasks with a model must have, such as {"cloud.google.com/gke-accelerator": "nvidia-l4"}; a local run has no nodes.
        tolerations: Taints that these tasks put up with, as Kubernetes writes them.
    """
    knobs = {"recipe": recipe, "overrides": overrides}
    nodes = Nodes(node_selector, tolerations)
    with road.told(knobs):
        data = road.accepted(knobs, nodes, data_uri, transfer_uri, protected_uris)
        road.registered(
            knobs,
            nodes,
            data,
            transfer_uri=transfer_uri,
            encoder_uri=encoder_uri,
            codebook_uri=codebook_uri,
            start_uri=start_uri,
            costs_uri=costs_uri,
            prices_uri=prices_uri,
        )
