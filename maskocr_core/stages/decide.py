"""decide: new lines + verdicts of domain fit → is there enough to train again?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskocr_core.config import Codebook, Config, Retrain
from maskocr_core.stages import kept, model_facts, nothing_to_do, scratch, stage

if TYPE_CHECKING:
    from maskocr_core.artifacts import Artifact

DAY = 86_400


@stage(reads=("retrain", "registry", "codebook"), reuse=False)
def decide(
    config: Config, *, lines: Path, selection: Path, claim: Path, encoder_uri: str = "", decision_out: Path
) -> dict[str, float]:
    """Decide whether what is new is enough to train again; if not, its objects are given back and count next time.

    lines: shards as ingest writes them, of which the unlabelled ones are the new ones.
    selection: accepted line ids, weights and verdicts, as fit writes them.
    claim: the claim on the new objects, as fresh writes it.
    encoder_uri: what describes the steps where codebook.features=encoder: a folder or a registered model (models:/name@alias); the champion if empty.
    decision_out: `decision.json`: `go`, the `reason` in a sentence, the numbers, and what training starts from.
    """
    from maskocr_core import artifacts
    from maskocr_core.artifacts import Artifact
    from maskocr_core.services import registered

    accepted, drift = count(Artifact(lines), Artifact(selection)), drift_of(Artifact(selection))
    version = registered.version_of(config.registry, "champion")
    champion = f"models:/{config.registry.model}/{version}" if version else ""
    age = _age_days(champion) if champion else None
    go, reason = ruled(config.retrain, accepted, drift["share"], age)
    print(f"decide: {reason}", flush=True)
    _hold_or_return(Artifact(claim), go, reason)
    if not go:
        nothing_to_do(config)
    start, begins = beginning(config.codebook, champion, encoder_uri, scratch(decision_out))
    if go:
        print(f"decide: {begins}", flush=True)
    numbers = {"accepted": accepted, "drift": drift, "champion": version, "champion_age_days": age}
    artifacts.write_json(decision_out / "decision.json", {"go": go, "reason": reason, **numbers, **start})
    measured = {"drift": drift["share"], "champion_age_days": age}
    return {"go": float(go), "accepted": float(accepted)} | {k: v for k, v in measured.items() if v is not None}


def ruled(settings: Retrain, accepted: int, drift: float | None, age_days: float | None) -> tuple[bool, str]:
    """Whether to train again, and the reason as a sentence.

    accepted: new lines that domain fit admits. drift: share of new lines where no labelled line lies, None where the
    labelled lines are too few to tell. age_days: of the champion, None where there is none.
    """
    lines = f"{accepted:,} new lines were accepted, of {settings.min_lines:,} that are enough"
    far = "drift cannot be told from so few lines"
    if drift is not None:
        far = f"{drift:.0%} of the new lines lie where no labelled line lies, of {settings.drift:.0%} that are enough"
    old = "there is no champion that could be too old"
    if age_days is not None:
        old = f"the champion is {age_days:.0f} days old, of {settings.max_age_days} that are enough"
    if not accepted:
        return False, "Nothing to do: no new line was accepted."
    because = [
        sentence
        for sentence, enough in (
            (lines, accepted >= settings.min_lines),
            (far, drift is not None and drift >= settings.drift),
            (old, age_days is not None and age_days >= settings.max_age_days),
        )
        if enough
    ]
    if because:
        return True, f"Train again: {'; '.join(because)}."
    return False, f"Nothing to do: {'; '.join((lines, far, old))}."


def count(lines: Artifact, selection: Artifact) -> int:
    """How many unlabelled lines the selection admits; what was forgotten since is not among them."""
    from maskocr_core.data import admitted
    from maskocr_core.data import lines as schema

    admitted.demand_made_for(selection, lines)
    shards = schema.shards(lines, "unlabeled")
    return sum(admitted.selected_of(lines, selection, shard, ["line_id"]).num_rows for shard in shards)


def drift_of(selection: Artifact) -> dict[str, Any]:
    """How far the new lines have moved from the labelled ones, by the statistics of domain fit.

    share: of the new lines those that lie where no labelled line lies, refused ones included; of a source with too few
    other lines to be measured the refused ones alone; None where nothing could be measured. sources: for each its
    verdict, lines, coverage with its interval, and KID ratio. by: what describes lines.
    """
    sources, far, lines = [], 0.0, 0
    for record in selection.read_json("verdicts.json"):
        judged = record["lines"] - record["quarantined"]
        interval, refused = record["coverage_interval"], record["refused"]
        if interval or refused:
            far, lines = far + judged * (1 - interval["all"] if interval else refused), lines + judged
        names = ("source", "verdict", "lines", "quarantined", "selected", "refused", "coverage_interval", "kid_ratio")
        sources.append({name: record[name] for name in names})
    described = selection.read_json("yardstick.json")["features"]
    return {"share": far / lines if lines else None, "sources": sources, "by": described}


def _age_days(champion: str) -> float:
    """Days since a registered model was made."""
    from datetime import UTC, datetime

    made = datetime.fromisoformat(str(model_facts(champion)["utc_time_created"])).replace(tzinfo=UTC)
    return max(0.0, (time.time() - made.timestamp()) / DAY)


def _hold_or_return(claim: Artifact, go: bool, reason: str) -> None:
    from maskocr_core.data import claims

    facts = claim.read_json("claim.json")
    if not facts["new"]:
        return
    held = claims.of_record(facts["claim"])
    if go:
        claims.renew(facts["claims_uri"], held)
    else:
        claims.end(facts["claims_uri"], held, "returned", reason)


def beginning(asked: Codebook, champion: str, encoder_uri: str, folder: Path) -> tuple[dict[str, str], str]:
    """What training starts from, by the parameter that names it, and that as a sentence. folder: for what is fetched.

    Where an encoder is to describe steps and none is given, the champion does: it knows of all labels so far, and whose
    labels pre-training predicts decides what it is worth (docs/method.md). Its own codebook is then of no use.
    """
    from maskocr_core.artifacts import Artifact
    from maskocr_core.training import codebooks

    start = {"start_uri": champion, "codebook_uri": "", "encoder_uri": encoder_uri}
    if not champion:
        return start, "there is no champion: codebook and encoder are made anew"
    if asked.features == "encoder" and not encoder_uri:
        start["encoder_uri"] = champion
        return start, f"{champion} labels the steps of a new codebook; its encoder is trained on"
    codebook = kept(champion, "codebook", folder)
    if not codebook:
        return start, f"{champion} came with no codebook: a new one is made; its encoder is trained on"
    if differing := codebooks.differences(Artifact(codebook), asked):
        other = f"the codebook of {champion} is another one ({differing})"
        return start, f"{other}: a new one is made; its encoder is trained on"
    start["codebook_uri"] = champion
    return start, f"codebook and encoder of {champion} are gone on with"
