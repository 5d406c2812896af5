"""What goes with a registered model beside its weights: its card, its settings, and where its data came from."""

from __future__ import annotations

from pathlib import Path

from maskocr_core import artifacts
from maskocr_core.artifacts import Artifact
from maskocr_core.config import Config
from maskocr_core.data import provenance
from maskocr_core.judging import model_card
from maskocr_core.training.reading import Candidate

# By start, the splits that it was trained on beside the labelled target lines, and the parts that a model from outside may give.
TRAINED = {
    "scratch": (),
    "transfer": ("transfer-train", "transfer-val"),
    "pretrained": ("unlabeled",),
    "both": ("transfer-train", "transfer-val", "unlabeled"),
}
GIVEN = {"transfer": ("transfer",), "pretrained": ("encoder", "labels"), "both": ("encoder", "labels")}


def write(
    config: Config, lines: Artifact, recognizers: Artifact, evaluation: Artifact, chosen: Candidate, folder: Path
) -> dict[str, Path]:
    """Write the model card and `provenance.json` (every setting, versions of the data, sources with their licences) into `folder`.

    Returns both files by name.
    """
    summary = evaluation.read_json("summary.json")
    admitted = [row["source"] for row in summary["fit"] if row["weight"] > 0]
    splits = ("train", "val", *TRAINED[chosen.start], "test", "protected-test")
    sources = provenance.sources(lines, splits, admitted)
    came_of = recognizers.read_json("runs.json").get("origins", {})  # recognisers of an earlier version do not say
    lineage = artifacts.lineage()
    made = {
        "maskocr": lineage["maskocr"],
        "commit": lineage["commit"],
        "recipe": config.recipe,
        "model": config.registry.model,
        "origins": {part: came_of[part] for part in GIVEN.get(chosen.start, ()) if came_of.get(part)},
    }
    facts = recognizers.read_json(f"{chosen.folder}/all/recognizer.json")
    card = model_card.text(summary, facts | {"characters": len(facts["characters"])}, sources, made)
    versions = {
        "lines": lines.version,
        "selection": summary["selection_version"],
        "recognizers": recognizers.version,
        "evaluation": evaluation.version,
    }
    files = {"model_card": folder / "model_card.md", "provenance": folder / "provenance.json"}
    artifacts.write_bytes(files["model_card"], card.encode())
    said = made | {"config": config.model_dump(mode="json"), "data_versions": versions, "sources": sources}
    artifacts.write_json(files["provenance"], said)
    return files
