"""finished as a KFP component: what an exit handler runs, however the pipeline ended."""

from kfp.dsl import PipelineTaskFinalStatus, component

from maskocr_components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def finished(recipe: str, overrides: list, status: PipelineTaskFinalStatus):
    """Say in MLflow how the run ended, and tell people of one that failed."""
    from maskocr_core.services import ending

    ending.ended(recipe, overrides, status.state, status.error_message)
