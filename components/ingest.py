"""ingest as a KFP component."""

from typing import NamedTuple

from kfp.dsl import Dataset, Metrics, Output, component

from maskocr_components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def ingest(
    recipe: str,
    overrides: list,
    data_uri: str,
    transfer_uri: str,
    protected_uris: str,
    lines_out: Output[Dataset],
    metrics: Output[Metrics],
) -> NamedTuple("Versions", [("data_version", str)]):
    """Turn raw line images and their texts into Parquet shards."""
    from maskocr_core import config, stages

    numbers = stages.get("ingest")(
        config.load(recipe, overrides),
        data_uri=data_uri,
        transfer_uri=transfer_uri,
        protected_uris=protected_uris,
        lines_out=lines_out.path,
    )
    for name, value in numbers.items():
        metrics.log_metric(name, value)
    return (stages.data_version(lines_out.path),)
