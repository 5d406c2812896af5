"""What goes with a registered model beside its weights: its card, its settings, and where its data came from."""

from __future__ import annotations

from pathlib import Path

from maskocr_core import artifacts
from maskocr_core.artifacts import Artifact
from maskocr_core.config import Config
from maskocr_core.data import provenance
from maskocr_core.judging import model_card
from maskocr_core.training import sweep
from maskocr_core.training.reading import Candidate

# Of the parts of a start (`sweep.PARTS`): the splits that it was trained on, and what of it a model from outside may give.
SPLITS = {"transfer": sweep.TRANSFER, "encoder": ("unlabeled",)}
GIVEN = {"transfer": ("transfer",), "encoder": ("encoder", "labels")}


def write(
    config: Config, lines: Artifact, recognizers: Artifact, evaluation: Artifact, chosen: Candidate, folder: Path
) -> dict[str, Path]:
    """Write the model card and `provenance.json` (every setting, versions of the data, sources with their licences) into `folder`.

    Returns both files by name.
    """
    summary = evaluation.read_json("summary.json")
    admitted = [row["source"] for row in summary["fit"] if row["weight"] > 0]
    parts = sweep.PARTS[chosen.start]
    trained = [split for part in parts for split in SPLITS[part]]
    sources = provenance.sources(lines, (*sweep.TARGET, *trained, "test", "protected-test"), admitted)
    came_of = recognizers.read_json("runs.json").get("origins", {})  # recognisers of an earlier version do not say
    lineage = artifacts.lineage()
    made = {
        "maskocr": lineage["maskocr"],
        "commit": lineage["commit"],
        "recipe": config.recipe,
        "model": config.registry.model,
        "origins": {given: came_of[given] for part in parts for given in GIVEN[part] if came_of.get(given)},
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
