"""fresh → ingest → validate → fit → decide → [enough] quantize → pretrain → finetune → evaluate → register."""

from kfp import dsl

from maskocr_components.decide import decide
from maskocr_components.fresh import conclude, fresh
from maskocr_pipelines import road
from maskocr_pipelines.cluster import Nodes, on_cluster


@dsl.pipeline(name="retrain", description="From what is new below a prefix that grows to a challenger of the champion.")
def retrain(
    data_uri: str,
    claims_uri: str,
    labelled_uri: str,
    transfer_uri: str = "",
    protected_uris: str = "",
    encoder_uri: str = "",
    costs_uri: str = "",
    prices_uri: str = "",
    recipe: str = "small",
    overrides: list = [],  # noqa: B006
    node_selector: dict = {},  # noqa: B006
    tolerations: list = [],  # noqa: B006
):
    """Claim what is new, and where it is enough go on from the champion's codebook and encoder to a challenger.

    Args:
        data_uri: Where new lines arrive: a folder or s3://bucket/prefix, in the forms that ingest takes.
        claims_uri: Where it is written down which run took which objects: a folder or s3://bucket/prefix of its own.
        labelled_uri: Your labelled lines, to fine-tune on and to be judged by, in the forms that ingest takes; of these the unlabelled ones are left out.
        transfer_uri: Labelled lines of a related domain in the same forms, or a trained recognizer (models:/name@alias); empty for none.
        protected_uris: Labelled lines that a new model must go on reading, in the same forms, separated by commas; empty for none.
        encoder_uri: What describes the steps that pre-training predicts, with codebook.features=encoder: a pre-trained encoder or a trained recognizer (folder or models:/name@alias); empty for the champion.
        costs_uri: JSON file of what errors cost, by character class and field; empty for the one that comes with maskocr.
        prices_uri: JSON file of prices of labels and computing, for a verdict on the investment; empty for none.
        recipe: Named configuration, the champion's: it decides the shape of the encoder that training goes on with.
        overrides: Changes to the recipe, such as ["retrain.min_lines=5000", "retrain.max_age_days=30"].
        node_selector: Labels that the nodes of tasks with a model must have, such as {"cloud.google.com/gke-accelerator": "nvidia-l4"}; a local run has no nodes.
        tolerations: Taints that these tasks put up with, as Kubernetes writes them.
    """
    knobs = {"recipe": recipe, "overrides": overrides}
    nodes = Nodes(node_selector, tolerations)
    with road.told(knobs):
        claimed = fresh(**knobs, data_uri=data_uri, claims_uri=claims_uri, labelled_uri=labelled_uri)
        claim = on_cluster(claimed, memory="4Gi", hours=6).outputs["claim_out"]
        with dsl.If(claimed.outputs["new"] == True, name="something-new"):  # noqa: E712  a channel, compared when the run is there
            data = road.accepted(knobs, nodes, claimed.outputs["data_uri"], transfer_uri, protected_uris)
            decided = decide(**knobs, **data.lines, selection=data.selection, claim=claim, encoder_uri=encoder_uri)
            on_cluster(decided, memory="4Gi", hours=6, nodes=nodes)
            with dsl.If(decided.outputs["go"] == True, name="enough"):  # noqa: E712
                registered = road.registered(
                    knobs,
                    nodes,
                    data,
                    transfer_uri=transfer_uri,
                    encoder_uri=decided.outputs["encoder_uri"],
                    codebook_uri=decided.outputs["codebook_uri"],
                    start_uri=decided.outputs["start_uri"],
                    costs_uri=costs_uri,
                    prices_uri=prices_uri,
                )
                concluded = conclude(claim=claim, registration=registered.outputs["registration_out"])
                on_cluster(concluded, memory="1Gi", hours=1)
