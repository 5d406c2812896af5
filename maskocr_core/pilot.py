"""`maskocr pilot`: the whole road on one machine, and the table at its end."""

from __future__ import annotations

import json
import os
import shlex
import time
from pathlib import Path


def travel(given: dict[str, str], recipe: str, overrides: list[str], work: Path) -> None:
    """Run the compiled pipeline under kfp.local on embedded defaults, version its data with DVC, and print what came out.

    given: `data_uri`, `transfer_uri`, `protected_uris`, `prices_uri` and `costs_uri`, as the pipeline takes them.
    """
    from maskocr_core import artifacts, config, doctor, stages
    from maskocr_core.services import storage, versions

    settings = config.load(recipe, overrides)  # a misspelt knob is said before anything is started
    _demand_readable(given)
    data, transfer = given["data_uri"], given["transfer_uri"]
    doctor.demand_disk(work, gigabytes=2.0)
    work = work.absolute()
    began = time.monotonic()
    commit = artifacts.code_commit()
    name = f"pilot-{time.strftime('%Y%m%d-%H%M%S')}"
    os.environ.setdefault("MASKOCR_WORK", str(work / "stages"))
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{work / 'mlflow.db'}")
    os.environ["MASKOCR_RUN"] = name
    import maskocr_pipelines
    from maskocr_pipelines import local

    pipeline = Path(maskocr_pipelines.__file__).with_name("pretrain_finetune.yaml")
    print(
        f"pilot: {pipeline.name} under kfp.local, recipe {recipe}, data {data}, transfer {transfer or 'none'}",
        flush=True,
    )
    several = ",".join(map(storage.absolute, storage.listed(given["protected_uris"])))
    uris = {what: storage.absolute(uri) for what, uri in given.items()} | {"protected_uris": several}
    local.run(pipeline, uris | {"recipe": recipe, "overrides": overrides}, work / "pipelines" / name)
    print("pilot: data stages once more through dvc.yaml, then dvc push", flush=True)
    versions.track(
        work / "data",
        data_uri=data,
        transfer_uri=transfer,
        protected_uris=given["protected_uris"],
        recipe=recipe,
        overrides=overrides,
        remote=str(work / "dvc-remote"),
        code=stages.code_versions(),
        config=stages.config_version(settings),
    )
    data_commit = versions.reproduce(work / "data")
    minutes = (time.monotonic() - began) / 60
    told = [
        ("--protected", given["protected_uris"]),
        ("--prices", given["prices_uri"]),
        ("--costs", given["costs_uri"]),
    ]
    told += [("--recipe", "" if recipe == "pilot" else recipe), *(("--set", override) for override in overrides)]
    flags = shlex.join(part for flag, value in told if value for part in (flag, value))
    command = f"make pilot DATA={shlex.quote(data)} TRANSFER={shlex.quote(transfer)}"
    command += f" PILOT_FLAGS={shlex.quote(flags)}" if flags else ""
    artifacts.write_json(
        work / "pipelines" / name / "pilot.json",
        {"command": command, "commit": commit, "minutes": minutes, "seeds": list(settings.sweep.seeds)},
    )
    _tell(work, name, data_commit, minutes)


def _demand_readable(given: dict[str, str]) -> None:
    """Raises ValueError for what is not there, or cannot be used, before anything is started."""
    import tempfile

    from maskocr_core.judging import prices, weights
    from maskocr_core.services import storage

    for uri in (given["data_uri"], given["transfer_uri"], *storage.listed(given["protected_uris"])):
        if uri and not uri.startswith("models:/"):
            storage.files(uri)
    with tempfile.TemporaryDirectory() as folder:
        for what, form in (("prices_uri", prices), ("costs_uri", weights)):
            if given[what]:
                form.load(storage.fetched(given[what], Path(folder)))


def _tell(work: Path, name: str, commit: str, minutes: float) -> None:
    from maskocr_core import escaping
    from maskocr_core.judging import comparison

    outputs = work / "pipelines" / name
    evaluation = next(outputs.glob("*/evaluate/evaluation_out"))
    summary = json.loads((evaluation / "summary.json").read_text())
    registration = json.loads(next(outputs.glob("*/register/registration_out/registration.json")).read_text())
    print(
        f"\nTest CER with its {100 * summary['confidence']:g} % interval over {summary['documents']} documents, {summary['lines']} lines:\n"
    )
    print(comparison.table(summary))
    # Reasons and lines may say what stands in strangers' documents, and a terminal obeys control characters.
    reason = escaping.spelled_out(summary["verdict"]["reason"])
    print(f"\nVerdict: {summary['verdict']['verdict']}. {reason}\n")
    for row in summary["returns"]:
        print(f"Worth it? {comparison.TITLES[row['start']]}: {row['verdict']}. {row['reason']}\n")
    sources = "; ".join(f"{row['source']} {row['verdict']}" for row in summary["fit"])
    print(f"Sources: {escaping.spelled_out(sources)}")
    print("\nTest lines: a typical, a hard and the two worst ones")
    for example in summary["examples"]:
        if example["start_name"] == summary["candidate"]:
            written, read = (escaping.spelled_out(example[name]) for name in ("reference", "read"))
            print(f"  written  {written}\n  read     {read}\n")
    elsewhere = "" if work == Path("work").absolute() else f"MLFLOW_TRACKING_URI={registration['tracking_uri']} "
    print(
        f"Data version {summary['data_version'][:12]}, in {work / 'data'} as commit {commit[:8]} (dvc pull brings it back)"
    )
    print(
        f"Registered   {registration['model']} version {registration['version']} as {registration['alias'] or 'a candidate on hold'}; a person makes it champion:"
    )
    print(f"             {elsewhere}.venv/bin/maskocr promote --version {registration['version']} --reason …")
    print(f"Report       {evaluation / 'report.html'}")
    print(f"MLflow UI    {elsewhere}.venv/bin/maskocr ui")
    print(f"Read a line  {elsewhere}.venv/bin/maskocr read IMAGE…\n\nDone in {minutes:.1f} minutes.")
