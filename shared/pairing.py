"""Whether two instances can hand KV over, and over which transport. Pure.

The scheduler asks before it cuts, the KV-transfer coordinator before it starts a handoff.
"""

from shared.errors import GeometryMismatch, HandoffError
from shared.schemas.handoff import Transport
from shared.schemas.registry import Geometry, InstanceRecord


def differences(one: Geometry, other: Geometry) -> list[str]:
    """Names of the fields in which two geometries differ; empty when KV can be handed over."""
    return [name for name in Geometry.model_fields if getattr(one, name) != getattr(other, name)]


def check_geometry(alpha: InstanceRecord, beta: InstanceRecord) -> None:
    """Raises GeometryMismatch, naming each field that differs with both values."""
    names = differences(alpha.geometry, beta.geometry)
    if names:
        values = ", ".join(
            f"{name} {getattr(alpha.geometry, name)!r} / {getattr(beta.geometry, name)!r}"
            for name in names
        )
        raise GeometryMismatch(
            f"{alpha.instance_id} and {beta.instance_id} cannot exchange KV: {values}"
        )


def usable_transports(alpha: InstanceRecord, beta: InstanceRecord) -> list[Transport]:
    """Transports that join the two, best first.

    NCCL needs a GPU on each side, shared memory one host; ``device`` tells GPUs apart.
    """
    same_host = alpha.host_id == beta.host_id
    reaches: dict[Transport, bool] = {
        "nccl": not (same_host and alpha.device == beta.device),
        "shm": same_host,
        "tcp": True,
    }
    return [
        name
        for name, reachable in reaches.items()
        if reachable and name in alpha.transports and name in beta.transports
    ]


def choose_transport(
    alpha: InstanceRecord, beta: InstanceRecord, wanted: Transport | None = None
) -> Transport:
    """The transport for a handoff; ``wanted`` is honoured or refused. Raises HandoffError."""
    usable = usable_transports(alpha, beta)
    if wanted is None and usable:
        return usable[0]
    if wanted in usable:
        return wanted
    what = f"{wanted!r} does not join" if wanted is not None else "no transport joins"
    raise HandoffError(
        f"{what} {alpha.instance_id} ({', '.join(alpha.transports)} on {alpha.host_id}) and "
        f"{beta.instance_id} ({', '.join(beta.transports)} on {beta.host_id})"
    )
