"""One thin KFP component a stage: it carries the stage into a container and holds no logic. A test proves the mirror."""

from importlib.metadata import version

IMAGE = f"maskocr-python:{version('maskocr')}"
