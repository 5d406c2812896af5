"""The file that says which pipelines run when: its fields, and the check of all of it before anything happens.

Times are for one of two clocks: that of KFP's schedule controller, which reads them in its own zone (UTC, unless
CRON_SCHEDULE_TIMEZONE says otherwise), or that of this machine, which follows each schedule's zone.
"""

import difflib
import hashlib
import json
import zoneinfo
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from maskocr_pipelines import client
from maskocr_pipelines.crontab import Cron, zone


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Schedule(_Strict):
    """One recurring run."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    """What it is known by: lower-case letters, digits and hyphens, 63 at most."""
    cron: str
    """Minute, hour, day of month, month, day of week."""
    timezone: str = "UTC"
    """IANA name of the zone that `cron` is meant in."""
    pipeline: Path
    """Compiled pipeline; a relative path counts from the folder of this file."""
    experiment: Annotated[str, Field(min_length=1)] = "maskocr"
    """KFP experiment of its runs."""
    parameters: dict[str, Any] = {}
    """Parameters of the pipeline, by name."""
    enabled: bool = True
    """Whether it runs; false keeps it, paused."""
    daylight_saving: Literal["refuse", "shift"] = "refuse"
    """What KFP does in a zone with daylight saving, which it cannot follow: nothing, or run an hour later in summer."""

    @field_validator("cron")
    @classmethod
    def _a_cron_line(cls, text: str) -> str:
        Cron.parse(text)
        return text

    @field_validator("timezone")
    @classmethod
    def _a_zone(cls, name: str) -> str:
        return zone(name).key


class File(_Strict):
    """All recurring runs of a place."""

    controller_timezone: str = "UTC"
    """Zone of KFP's schedule controller: its CRON_SCHEDULE_TIMEZONE."""
    schedules: Annotated[list[Schedule], Field(min_length=1)]

    @field_validator("controller_timezone")
    @classmethod
    def _a_zone(cls, name: str) -> str:
        return zone(name).key


@dataclass(frozen=True)
class Plan:
    """A checked schedule and what it comes to: times in `zone`, the pipeline's name and digest, typed arguments.

    assignments: the arguments as `maskocr run` takes them. warning: what is not as the file says, or empty.
    """

    schedule: Schedule
    times: Cron
    zone: zoneinfo.ZoneInfo
    pipeline: Path
    pipeline_name: str
    digest: str
    arguments: dict[str, object]
    assignments: list[str]
    warning: str = ""

    @property
    def name(self) -> str:
        return self.schedule.name


def read(path: Path, local: bool = False) -> list[Plan]:
    """Every schedule of a file, checked whole: fields, times, zones, and parameters against the compiled pipelines.

    local: times stay in the schedule's own zone, which APScheduler follows; otherwise they are the controller's. Raises
    ValueError with file, schedule, field and mend.
    """
    file = _validated(path)
    plans: list[Plan] = []
    for schedule in file.schedules:
        if schedule.name in [plan.name for plan in plans]:
            raise ValueError(f"{path}, schedule {schedule.name}, field name: it is taken; give one of the two another")
        plans.append(_planned(path, schedule, zone(file.controller_timezone), local))
    return plans


def _validated(path: Path) -> File:
    import yaml

    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): give the file with the schedules") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    try:
        return File.model_validate(written)
    except ValidationError as error:
        raise ValueError(f"{path}{_sentence(error.errors()[0], written)}") from None


def _sentence(error: Any, written: Any) -> str:
    """What pydantic found first, with its place and the mend."""
    places, known = list(error["loc"]), File.model_fields
    where = ""
    if len(places) > 1 and places[0] == "schedules" and isinstance(places[1], int):
        entry = written["schedules"][places[1]]
        named = entry.get("name") if isinstance(entry, dict) else None
        where, places, known = f", schedule {named or f'number {places[1] + 1}'}", places[2:], Schedule.model_fields
    if not places:
        return f"{where}: write fields as `name: value`; it has {', '.join(known)}"
    field = str(places[0])
    where += f", field {field}"
    match error["type"]:
        case "extra_forbidden":
            nearest = difflib.get_close_matches(field, known, n=1)
            return f"{where}: unknown{f', did you mean {nearest[0]}?' if nearest else ''} It has {', '.join(known)}"
        case "missing":
            return f"{where}: missing: {known[field].description or 'a list of schedules'}"
        case "value_error":
            return f"{where}: {error['ctx']['error']}"
    described = f": {known[field].description}" if field in known and known[field].description else ""
    return f"{where}: {error['input']!r} does not fit, {error['msg'][:1].lower()}{error['msg'][1:]}{described}"


def _planned(path: Path, schedule: Schedule, controller: zoneinfo.ZoneInfo, local: bool) -> Plan:
    import yaml

    at = f"{path}, schedule {schedule.name}, field"
    pipeline, own = path.parent / schedule.pipeline, zone(schedule.timezone)
    try:
        known = client.parameters(pipeline)
    except ValueError as error:
        raise ValueError(f"{at} pipeline: {error}") from None
    try:
        assignments = [f"{key}={_text(known, key, value)}" for key, value in schedule.parameters.items()]
        arguments = client.parse(pipeline, assignments)
    except ValueError as error:
        raise ValueError(f"{at} parameters: {error}") from None
    content = pipeline.read_bytes()
    name = next(yaml.safe_load_all(content))["pipelineInfo"]["name"]
    times, there, warning = Cron.parse(schedule.cron), own, ""
    if not local:
        times, warning = _converted(at, schedule, times, own, controller)
        there = controller
    digest = hashlib.sha256(content).hexdigest()
    return Plan(schedule, times, there, pipeline, name, digest, arguments, assignments, warning)


def _text(known: dict[str, client.Parameter], name: str, value: object) -> str:
    """A value of the file as one writes it on a command line."""
    if isinstance(value, str):
        return value
    if name in known and known[name].type == "STRING":
        raise ValueError(f"{name} is a text and {value!r} is none in YAML: put it in quotes")
    try:
        return json.dumps(value)
    except TypeError:
        raise ValueError(f"{name}: {value!r} is a {type(value).__name__} in YAML: put it in quotes") from None


def _converted(
    at: str, schedule: Schedule, times: Cron, own: zoneinfo.ZoneInfo, controller: zoneinfo.ZoneInfo
) -> tuple[Cron, str]:
    """The times on the controller's clock, and a warning where they are not those of the file all year."""
    if own.key == controller.key:
        return times, ""
    here, there = _offsets(own), _offsets(controller)
    moving = [each.key for each, offsets in ((own, here), (controller, there)) if len(offsets) > 1]
    if moving and schedule.daylight_saving == "refuse":
        raise ValueError(
            f"{at} timezone: {' and '.join(moving)} changes its clock during the year, and KFP's schedules, which "
            f"are in {controller.key}, do not: write `timezone: UTC` with the hour in UTC, or `daylight_saving: shift` "
            "to keep standard time, so that the hour moves on the wall clock"
        )
    try:
        found = times.shifted(there[0] - here[0])
    except ValueError as error:
        raise ValueError(
            f"{at} cron: {schedule.cron} in {own.key} cannot be said in {controller.key}: {error}"
        ) from None
    warning = (
        f"{schedule.name}: the times are those of standard time ({own.key} at {_said(here[0])}); while a clock of "
        f"{' or '.join(moving)} is put forward, the wall clock there shows another hour"
        if moving
        else ""
    )
    return found, warning


def _offsets(there: zoneinfo.ZoneInfo) -> list[int]:
    """Minutes that a zone is ahead of UTC, all that occur within two years from now."""
    first = datetime.now(UTC)
    looks = (first + timedelta(hours=6 * step) for step in range(2 * 366 * 4))
    return sorted({int(look.astimezone(there).utcoffset().total_seconds() // 60) for look in looks})


def _said(minutes: int) -> str:
    return f"UTC{'+' if minutes >= 0 else '-'}{abs(minutes) // 60}" + (
        f":{abs(minutes) % 60:02}" if minutes % 60 else ""
    )


@dataclass(frozen=True)
class Row:
    """What `show` tells of a schedule: state (enabled, paused, absent, …), its version, and the next runs."""

    name: str
    state: str
    version: str
    next: list[tuple[datetime, datetime]]
    """In the schedule's zone and in the controller's, or UTC on this machine."""


def upcoming(plan: Plan, now: datetime, other: zoneinfo.ZoneInfo | None = None) -> list[tuple[datetime, datetime]]:
    """The next three runs, in the zone of the schedule and in the controller's, or in `other`."""
    own = zone(plan.schedule.timezone)
    return [
        (moment.astimezone(own), moment.astimezone(other or plan.zone))
        for moment in plan.times.following(plan.zone, now, 3)
    ]
