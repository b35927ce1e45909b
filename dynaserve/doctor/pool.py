"""The pool as registered: can any two of its instances hand KV over?"""

from collections import Counter
from collections.abc import Iterable, Sequence

import httpx
from pydantic import BaseModel, ValidationError

from dynaserve.doctor.finding import Finding, fail, ok, warn
from shared.schemas.message import Message
from shared.schemas.registry import (
    RECORD,
    CoordinatorRecord,
    GatewayRecord,
    Geometry,
    InstanceRecord,
    Record,
    SchedulerRecord,
)

SERVICES: dict[str, tuple[type[Message], str]] = {
    "gateway": (GatewayRecord, "dynaserve gateway"),
    "scheduler": (SchedulerRecord, "dynaserve scheduler"),
    "kv-transfer": (CoordinatorRecord, "dynaserve kv-transfer"),
}


GATEWAY_TIMEOUT_S = 3.0


class Served(BaseModel):
    """The pool behind a gateway, as its /dynaserve/pool tells it."""

    pool: str
    nats: str


async def ask_gateway(url: str) -> Served | None:
    """None where no gateway answers at ``url``, whatever else does."""
    try:
        async with httpx.AsyncClient(base_url=url, timeout=GATEWAY_TIMEOUT_S) as client:
            return Served.model_validate_json((await client.get("/dynaserve/pool")).content)
    except (httpx.HTTPError, ValidationError):
        return None


def read_records(raw: Iterable[tuple[str, bytes]]) -> tuple[list[Record], list[str]]:
    """The records, and the keys of those that this release cannot read."""
    records: list[Record] = []
    unreadable = []
    for key, data in raw:
        try:
            records.append(RECORD.validate_json(data))
        except ValidationError:
            unreadable.append(key)
    return records, unreadable


def judge_pool(records: Sequence[Record], unreadable: Sequence[str]) -> list[Finding]:
    """Findings about who is registered; a pool that is not there is no fault."""
    if not records and not unreadable:
        return [ok("pool", "nobody is registered")]
    instances = [record for record in records if isinstance(record, InstanceRecord)]
    return [
        *judge_unreadable(unreadable),
        *judge_services(records),
        judge_instances(instances),
        *judge_geometry(instances),
    ]


def judge_unreadable(unreadable: Sequence[str]) -> list[Finding]:
    if not unreadable:
        return []
    return [
        fail(
            "registry",
            f"{', '.join(unreadable)}: written by another release",
            "run the same release on every host of the pool",
        )
    ]


def judge_services(records: Sequence[Record]) -> list[Finding]:
    """Each service that a request needs is there at least once."""
    findings = []
    for name, (kind, command) in SERVICES.items():
        count = sum(isinstance(record, kind) for record in records)
        if count:
            findings.append(ok(name, f"{count} registered"))
        else:
            findings.append(fail(name, "none registered", f"start one: `{command} --nats URL`"))
    return findings


def judge_instances(instances: Sequence[InstanceRecord]) -> Finding:
    ready = [instance for instance in instances if instance.state == "ready"]
    said = f"{len(ready)} ready, {len(instances) - len(ready)} draining"
    start = "start them: `dynaserve instance MODEL --nats URL`"
    if not ready:
        return fail("instances", said, start)
    if len(ready) == 1:
        return warn("instances", f"{said}: no request can be cut in two", start)
    return ok("instances", said)


def judge_geometry(instances: Sequence[InstanceRecord]) -> list[Finding]:
    """Instances of one model that differ from most of their like cannot exchange KV."""
    models = sorted({instance.geometry.model for instance in instances})
    findings = []
    for model in models:
        serving = [instance for instance in instances if instance.geometry.model == model]
        usual, _ = Counter(instance.geometry for instance in serving).most_common(1)[0]
        findings += [
            judge_odd_one(instance, usual) for instance in serving if instance.geometry != usual
        ]
    if instances and not findings:
        findings = [ok("geometry", f"alike, vLLM {instances[0].geometry.vllm_version}")]
    return findings


def judge_odd_one(instance: InstanceRecord, usual: Geometry) -> Finding:
    """Name the fields in which one instance differs, and what to change."""
    differing = differences(instance.geometry, usual)
    said = "; ".join(f"{name} {here!r}, elsewhere {there!r}" for name, here, there in differing)
    if any(name == "vllm_version" for name, _, _ in differing):
        mend = "run scripts/setup on its host, so that it has the pinned vLLM, and start it again"
    else:
        mend = "start it again with the model and engine flags of the others"
    return fail("geometry", f"{instance.instance_id} differs: {said}", mend)


def differences(here: Geometry, there: Geometry) -> list[tuple[str, object, object]]:
    """Field, value here, value there, for each field that differs."""
    return [
        (name, getattr(here, name), getattr(there, name))
        for name in Geometry.model_fields
        if getattr(here, name) != getattr(there, name)
    ]
