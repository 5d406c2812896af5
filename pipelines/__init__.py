"""The pipelines by name. They connect components and set resources; they do not know the core."""

PIPELINES = ("pretrain_finetune", "retrain")
