"""What an evaluation reads: the test lines with every start and the champion, smaller budgets, and sets that must not get worse."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from maskocr_core.artifacts import Artifact
from maskocr_core.config import Config, Data, Registry
from maskocr_core.data import admitted
from maskocr_core.data import lines as schema
from maskocr_core.data.batches import Lines
from maskocr_core.data.tombstones import digest
from maskocr_core.judging import comparison, cost, gate, metrics, reviews, slices
from maskocr_core.judging.comparison import Readings, Test
from maskocr_core.judging.confidence import assessment, calibration, operating
from maskocr_core.judging.value import finite
from maskocr_core.judging.weights import Weights
from maskocr_core.services import registered
from maskocr_core.training import calibrating, checkpoint, reading, saw
from maskocr_core.training.reading import Candidate

OLD = ("protected-test", "transfer-val")  # splits whose lines a new model must go on reading
GRADES = ("contrast", "sharpness")  # columns of what validate measures


@dataclass(frozen=True)
class Inputs:
    """The artifacts of an evaluation, the recognisers and the champion as local folders."""

    lines: Artifact
    validation: Artifact
    selection: Artifact
    recognizers: Path
    champion: Path | None
    champion_version: str | None = None

    def of_split(self, split: str, data: Data) -> Lines:
        return Lines(self.lines, admitted.selected(self.lines, self.selection, split), data)


def version_of(source: Lines) -> str:
    """Digest of the ids of some lines: the same set of test lines is known again in other data versions."""
    return hashlib.sha256("\n".join(sorted(source.line_ids)).encode()).hexdigest()


def worn(uses: int, limit: int) -> list[str]:
    """What has to be said of test lines that served often."""
    if uses <= 1:
        return []
    said = f"These test lines served for {uses:,} verdicts"
    if uses <= limit:
        return [f"{said}."]
    return [f"{said}, more than {limit:,}: choices have begun to fit them. Label new test documents."]


def protected_sets(inputs: Inputs, data: Data) -> dict[str, Lines]:
    """By name the lines of old domains: those given to be protected, and the validation lines of the transfer domain."""
    sets = {}
    for split in OLD:
        table = admitted.selected(inputs.lines, inputs.selection, split)
        for source in sorted(set(table["source"].to_pylist())):
            name = f"{source} (transfer)" if split == "transfer-val" else source
            sets[name] = Lines(inputs.lines, table.filter(pc.equal(table["source"], source)), data)
    return sets


def champion_of(registry: Registry) -> tuple[Path | None, str | None]:
    """Folder and version of the champion; None where there is none.

    Raises ValueError where it cannot be loaded, before hours go into what would be held against it.
    """
    version = registered.version_of(registry, "champion")
    if not version:
        return None, None
    try:
        folder = registered.recognizer_folder(f"models:/{registry.model}/{version}")
        checkpoint.load_recognizer(folder)
    except (ValueError, OSError, RuntimeError, KeyError) as error:  # RuntimeError: weights of another shape
        raise ValueError(
            f"the champion, {registry.model} version {version}, cannot be loaded: {error}; bring its files back to where "
            "MLflow keeps them, or make another version champion (maskocr rollback, maskocr promote)"
        ) from None
    return folder, version


def read_champion(folder: Path, source: Lines) -> Readings:
    texts, confidences = reading.read_with(folder, source, "champion")
    return Readings("champion", {"all": [texts]}, 0, (confidences,))


Against = dict[str, tuple[Test, list[list[str]], list[str]]]  # as `comparison.protected` takes it


def guarded(source: Lines, config: Config, validation: Artifact) -> dict[str, np.ndarray]:
    """Places of the test lines of each slice that is protected. Raises ValueError for one that no test line is of."""
    facts = facts_of(source, validation) if config.gate.slices else None
    return {name: slices.members(source.texts, facts, name) for name in config.gate.slices}


def of_slices(
    places: dict[str, np.ndarray], source: Lines, config: Config, candidate: Readings, champion: Readings
) -> Against:
    """The candidate and the champion on the protected slices of the test lines."""
    found = {}
    for name, rows in places.items():
        texts, documents, read, champions = (
            [of_all[row] for row in rows]
            for of_all in (source.texts, source.documents, candidate.by_mark["all"][0], champion.by_mark["all"][0])
        )
        test = Test(texts, documents, config.gate.confidence, config.gate.min_documents)
        found[name] = (test, [read], champions)
    return found


def read_old(
    inputs: Inputs, runs: dict[str, Any], config: Config, candidate: Candidate
) -> tuple[list[dict[str, Any]], Against]:
    """How each start reads the protected sets after fine-tuning, and before it; and the candidate beside the champion there."""
    rows, against = [], {}
    for name, source in protected_sets(inputs, config.data).items():
        test = of(source, config)
        for after in reading.read_starts(inputs.recognizers, runs["runs"], source, ("all",)):
            base = inputs.recognizers / f"{after.start}-base" / "all"
            before = None
            if base.is_dir():
                texts, _ = reading.read_with(base, source, f"{after.start} before fine-tuning")
                before = Readings(after.start, {"all": [texts]})
            rows.append(comparison.forgetting(name, test, before, after))
            if after.start == candidate.start and inputs.champion:
                champion = read_champion(inputs.champion, source).by_mark["all"][0]
                against[name] = (test, candidate.of(after).by_mark["all"], champion)
    return rows, against


def of(source: Lines, config: Config) -> Test:
    """The lines as what is judged on."""
    return Test(source.texts, source.documents, config.gate.confidence, config.gate.min_documents)


def facts_of(source: Lines, validation: Artifact) -> slices.Facts:
    """What validate measured of the lines."""
    measured: dict[str, dict[str, Any]] = {}
    for shard in sorted({shard for shard, _, _ in source.places}):
        table = schema.read_table(validation, f"measurements/{shard}").select(["line_id", *GRADES])
        measured |= {row["line_id"]: row for row in table.to_pylist()}
    grades = {
        name: np.array([_number(measured.get(line, {}).get(name)) for line in source.line_ids]) for name in GRADES
    }
    return slices.Facts(source.table["source"].to_pylist(), source.documents, grades)


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def found(source: Lines, candidate: Readings, config: Config, validation: Artifact) -> dict[str, list[dict[str, Any]]]:
    """Where the candidate's errors are: `slices`, `classes` of characters and `confusions`."""
    texts = candidate.by_mark["all"]
    gate_ = config.gate
    cut = slices.slices(source.texts, texts, facts_of(source, validation), gate_.confidence, gate_.min_documents)
    confused = slices.confusions(source.texts, texts[0])
    return {
        "slices": slices.as_rows(cut),
        "classes": slices.by_character_class(source.texts, texts[0]),
        "confusions": [row | {"line_id": source.line_ids[row.pop("line")]} for row in confused],
    }


def data_checks(inputs: Inputs, source: Lines, candidate: Candidate, verdicts: list[dict]) -> list[gate.Comparison]:
    """That the candidate was not trained on a test document, and that what it was pre-trained on fits."""
    checks = [_leak(inputs, source, saw.read(inputs.recognizers / candidate.folder))]
    if candidate.start in ("pretrained", "both"):
        used = [row for row in verdicts if row["verdict"] == "undecided" and row["weight"] > 0]
        names = ", ".join(row["source"] for row in used[:3])
        checks.append(
            gate.counted(
                "data that fit",
                len(used),
                "Every source of its pre-training was found to fit.",
                f"It was pre-trained on sources of which nobody knows whether they fit: {names}.",
            )
        )
    return checks


def _leak(inputs: Inputs, source: Lines, trained: saw.Saw) -> gate.Comparison:
    """Whether the candidate was trained on a test document; on a test page, where the data put pages of one on both sides."""
    table = source.table
    pages = set(zip(*(table[name].to_pylist() for name in ("source", "document_id", "page_id"))))
    documents = {page[:2] for page in pages}
    shared = saw.of_lines(inputs.lines, inputs.selection, ("train", "val")).documents
    torn = {document for document in documents if digest(*document) in shared}
    seen = {document for document in documents - torn if digest(*document) in trained.documents}
    seen |= {page[:2] for page in pages if page[:2] in torn and digest(*page) in trained.pages}
    known = (
        f" {len(torn)} of {len(documents)} have other pages there: the score is one on new pages of known documents."
    )
    if not seen and not trained.complete:
        return gate.unknown("no leak", "A model that it goes on from does not say which documents it was trained on.")
    return gate.counted(
        "no leak",
        len(seen),
        f"No test {'page' if torn else 'document'} is among those of training.{known if torn else ''}",
        f"{len(seen)} of {len(documents)} test documents are among the documents that it was trained on.",
    )


@dataclass(frozen=True)
class Trust:
    """What the candidate's calibrated confidence is worth on the test lines: for the summary, for the gate, as a picture.

    plot: empty where it is not usable.
    """

    said: dict[str, Any]
    check: gate.Comparison
    plot: bytes


def confidence(
    inputs: Inputs, source: Lines, candidate: Readings, trained: Path, config: Config, weights: Weights
) -> Trust:
    """Assess the candidate's confidence, and what a line costs where unsure ones go to a person.

    candidate: what it read. trained: its folder.
    """
    folder = trained / "all"
    recognizer, facts = checkpoint.load_recognizer(folder)
    fitted = calibrating.load(folder, facts["sha256"])
    settings = (config.gate.confidence, config.gate.min_documents)
    probabilities = _calibrated(fitted, candidate.confidences[0])
    exact = metrics.line_errors(source.texts, candidate.by_mark["all"][0]).edits == 0
    thresholds = fitted.thresholds if fitted else dict.fromkeys(operating.TARGETS)
    assessed = assessment.assess(probabilities, exact, source.documents, thresholds, *settings)
    usable = bool(fitted and fitted.usable and assessed.usable)
    reason = (fitted.reason if fitted else "it was never calibrated") or assessed.reason
    said = {
        "usable": usable,
        "reason": reason,
        "known_documents": _known(inputs),
        "ece": finite(asdict(assessed.ece)),
        "chance": assessed.chance,
        "brier": finite(asdict(assessed.brier)),
        "auroc": finite(asdict(assessed.auroc)),
        "exact": finite(asdict(assessed.exact)),
        "table": [finite(asdict(point)) | {"sentence": operating.sentence(point)} for point in assessed.table],
        "review": None,
    }
    if usable:
        # The cheapest threshold is chosen where the calibration was fitted, and judged here.
        validation = inputs.of_split("val", config.data)
        texts, raw = calibrating.readings(recognizer, facts, validation, "evaluate validation lines")
        priced = reviews.review(
            (_calibrated(fitted, raw), cost.line_costs(validation.texts, texts, weights)),
            (probabilities, cost.line_costs(source.texts, candidate.by_mark["all"][0], weights)),
            source.documents,
            weights,
            *settings,
        )
        said["review"] = [finite(asdict(row)) | {"unit": weights.unit} for row in priced]
    plot = assessment.plot(assessed) if usable else b""
    return Trust(said, gate.calibration(usable, assessed.ece, config.gate.ece, reason), plot)


def _known(inputs: Inputs) -> int:
    """How many documents of the validation lines, on which confidence is fitted, have training lines too.

    0 where data are split by document. Other pages of theirs are read better than new documents.
    """
    trained, validated = (saw.of_lines(inputs.lines, inputs.selection, (split,)) for split in ("train", "val"))
    return len(trained.documents & validated.documents)


def _calibrated(fitted: calibration.Calibration | None, raw: list[float]) -> np.ndarray:
    return calibration.apply(fitted, np.array(raw)) if fitted and fitted.usable else np.array(raw)
