"""fresh: a place that grows → a claim on what is new there, and the list of it that ingest reads."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from maskocr_core.config import Config
from maskocr_core.stages import nothing_to_do, stage

if TYPE_CHECKING:
    from maskocr_core.data.claims import Claim, Taken


@stage(reads=("retrain", "registry"), reuse=False, places=("data_uri", "claims_uri", "labelled_uri"))
def fresh(
    config: Config, *, data_uri: str, claims_uri: str, labelled_uri: str = "", claim_out: Path
) -> dict[str, float]:
    """List the objects that are new since the last claim, and claim them, so that each is processed by one run, once.

    data_uri: where new lines arrive: a folder or s3://bucket/prefix, in the forms that ingest takes.
    claims_uri: where claims are kept: a folder or s3://bucket/prefix that all runs share.
    labelled_uri: your labelled lines, read beside every claim, as ingest takes them; of these the unlabelled ones are left out; empty for none.
    claim_out: `claim.json`: the objects with size, stamp and time, and the list of them as `data_uri` of ingest.
    """
    from maskocr_core import artifacts
    from maskocr_core.data import claims
    from maskocr_core.services import logged, registered, storage, tracking

    run = os.environ.get("MASKOCR_RUN") or f"by hand {uuid.uuid4().hex[:12]}"
    settle, abandoned = config.retrain.settle_minutes * 60, config.retrain.abandoned_hours * 3600
    home = storage.absolute(claims_uri).rstrip("/")

    def came_of(claim: Claim) -> str | None:
        version = tracking.outcome_of(config.registry, claim.run, claim.id) if logged.is_there() else None
        if version is None or registered.version_tags(config.registry, version) is None:
            return None
        return f"{config.registry.model} version {version}, which run {claim.run} registered"

    taken = claims.take(data_uri, claims_uri, run, settle, abandoned, came_of)
    told, claim = _told(taken, data_uri, config), taken.claim
    for line in told:
        print(f"fresh: {line}", flush=True)
    facts = {
        "new": bool(claim),
        "reason": told[0],
        "data_uri": _listed(claim, home, labelled_uri) if claim else "",
        "claims_uri": home,
        "claim": claims.record(claim) if claim else None,
    }
    artifacts.write_json(claim_out / "claim.json", facts)
    if not claim:
        nothing_to_do(config)
    elif os.environ.get("MASKOCR_RUN"):
        tracking.tell_claim(config.registry, claim.id)
    return {
        "claim": float(claim.number if claim else 0),
        "objects": float(len(claim.objects) if claim else 0),
        "bytes": float(sum(file.size for file in claim.objects) if claim else 0),
        "again": float(len(claim.again) if claim else 0),
        "waiting": float(len(taken.waiting)),
        "halves": float(len(taken.halves)),
        "vanished": float(len(taken.vanished)),
        "held": float(sum(len(claim.objects) for claim in taken.held)),
    }


def _listed(claim: Claim, claims_uri: str, labelled_uri: str) -> str:
    """Write the list that ingest reads, at a place named by what is on it: a claim may lose vanished objects."""
    import hashlib

    from maskocr_core.services import storage

    listing = storage.Listing(claim.data, storage.absolute(labelled_uri), claim.files)
    content = "\n".join(f"{file.name}\0{file.stamp}" for file in claim.files)
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    root = claim.data.rpartition("/")[2]
    return storage.put_list(f"{claims_uri}/lists/{claim.number:08}-{digest}/{root}", listing)


def _told(taken: Taken, data_uri: str, config: Config) -> list[str]:
    """What came of it, in sentences; the first says what is claimed, or that there is nothing to do."""
    if claim := taken.claim:
        size = sum(file.size for file in claim.objects)
        told = [f"claim {claim.number}: {len(claim.objects):,} new objects ({size:,} bytes) below {data_uri}"]
        if claim.again:
            told.append(f"{len(claim.again):,} claimed before are read again with what is new of their pairs")
    else:
        told = [f"nothing to do: there is nothing new below {data_uri} that is not claimed or waits"]
    if taken.waiting:
        young = f"younger than {config.retrain.settle_minutes:g} minutes, or of a pair that is"
        told.append(f"{len(taken.waiting):,} wait for the next run: {young}, such as {taken.waiting[0]}")
    if taken.halves:
        told.append(f"{len(taken.halves):,} wait for the other half of their pair, such as {taken.halves[0]}")
    if taken.vanished:
        told.append(
            f"{len(taken.vanished):,} claimed objects vanished or changed, such as {taken.vanished[0]}: left out"
        )
    told += [f"claim {ended.number} is done: {ended.reason}" for ended in taken.ended]
    for other in taken.held:
        hours = (taken.now - other.taken) / 3600
        told.append(
            f"claim {other.number} ({len(other.objects):,} objects) is held by run {other.run} since {hours:.1f} hours, "
            f"and taken over after {config.retrain.abandoned_hours:g}; if that run is dead, go on with it at once: "
            f"MASKOCR_RUN='{other.run}'"
        )
    return told


def conclude(claim: Path | str, registration: Path | str) -> None:
    """Say of a claim that it is done, and which model came of it.

    Raises ValueError where another run has taken it over.
    """
    from maskocr_core.artifacts import Artifact
    from maskocr_core.data import claims

    facts, model = (
        Artifact(Path(claim)).read_json("claim.json"),
        Artifact(Path(registration)).read_json("registration.json"),
    )
    reason = f"{model['model']} version {model['version']}, verdict {model['verdict']}"
    ended = claims.end(facts["claims_uri"], claims.of_record(facts["claim"]), "done", reason)
    print(f"conclude: claim {ended.number} is done: {reason}", flush=True)
