"""The stages of maskocr on one pack of lines, in a work folder: what the experiments are made of."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from maskocr_core import artifacts, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.config import Config
from maskocr_core.data import admitted
from maskocr_core.data import lines as schema
from maskocr_core.data.batches import Lines
from maskocr_core.stages import keys
from maskocr_core.training import saw, sweep
from maskocr_core.training.finetuning import Run


class Road:
    """Artifacts by name below `home`. A stage that was made with the same inputs before is reused, a killed one goes on."""

    def __init__(self, home: Path):
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        os.environ["MASKOCR_WORK"] = str(home / "stages")

    def accept(self, config: Config, data: Path, transfer: Path) -> None:
        """Ingest, validate and fit: `lines` and `selection`."""
        stages.get("ingest")(config, data_uri=str(data), transfer_uri=str(transfer), lines_out=self.home / "lines")
        lines = {"lines": self.home / "lines"}
        stages.get("validate")(config, **lines, validation_out=self.home / "validation")
        stages.get("fit")(config, **lines, validation=self.home / "validation", selection_out=self.home / "selection")

    def quantize(self, config: Config, name: str, encoder: Path | None = None) -> Path:
        """A codebook; `encoder` describes the steps where the recipe says that one does."""
        out = self.home / name
        stages.get("quantize")(config, **self._accepted, encoder_uri=str(encoder or ""), codebook_out=out)
        return out

    def pretrain(self, config: Config, name: str, codebook: Path) -> Path:
        out = self.home / name
        stages.get("pretrain")(config, **self._accepted, codebook=codebook, encoder_out=out)
        return out

    def recogniser(self, config: Config, budget: int, encoder: Path | None = None) -> Path:
        """What `transfer`, or from an encoder `both`, comes to with a budget of labels, by the first learning rate and seed.

        A sweep reuses it.
        """
        settings, start = config.sweep, "both" if encoder else "transfer"
        base = self._carried_out(sweep.transfer_run(start, config, encoder), config)
        rate, seed = settings.learning_rates[0], settings.seeds[0]
        made = self._carried_out(
            Run(start, sweep.TARGET, budget, rate, seed, settings.steps, recognizer=str(base)), config
        )
        inputs = map(Artifact, self._accepted.values())
        seen = saw.of_lines(*inputs, (*sweep.TARGET, *sweep.TRANSFER))
        (seen | saw.read(encoder) if encoder else seen).write(made.parent)
        return made

    def _carried_out(self, run: Run, config: Config) -> Path:
        lines, selection = self._accepted.values()
        key = run.key(
            config, schema.version(Artifact(lines)), Artifact(selection).version, keys.code_version("finetune")
        )
        folder = artifacts.work_folder() / "runs" / key
        sweep.carry_out([run], config, lines, selection, [folder])
        return folder / "all"

    def finetune(self, config: Config, name: str, encoder: Path) -> tuple[Path, dict[str, Any]]:
        """The output of a sweep and its `runs.json`."""
        out = self.home / name
        stages.get("finetune")(config, **self._accepted, encoder=encoder, recognizers_out=out)
        return out, json.loads((out / "runs.json").read_text())

    def validation(self, config: Config) -> Lines:
        """The labelled lines that choices are made on."""
        lines, selection = (Artifact(path) for path in self._accepted.values())
        return Lines(lines, admitted.selected(lines, selection, "val"), config.data)

    def along(self, encoder: Path, looks: int = 24) -> list[dict[str, float]]:
        """What pre-training logged, at some `looks` moments evenly along its way."""
        log = [json.loads(line) for line in (encoder / "log.jsonl").read_text().splitlines() if line]
        by_step = {int(row["step"]): row for row in log}
        every = max(1, len(by_step) // looks)
        kept = ("step", "masked_loss", "visible_loss", "masked_accuracy", "masking_probability", "probe_cer")
        return [{name: row[name] for name in kept if name in row} for row in list(by_step.values())[every - 1 :: every]]

    @property
    def _accepted(self) -> dict[str, Path]:
        return {"lines": self.home / "lines", "selection": self.home / "selection"}
