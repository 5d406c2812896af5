"""maskocr: masked self-supervised pre-training for text recognition, as stages that any orchestrator can run."""
