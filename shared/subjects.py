"""Every NATS subject, declared once. ``<pool>`` separates pools that share one server.

| subject | messages | who listens |
|---|---|---|
| `dynaserve.<pool>.place` | Place, answered by Plan or PlaceRefused | schedulers (queue group) |
| `dynaserve.<pool>.schedulers.control` | SetPolicy, SetAdmission | every scheduler |
| `dynaserve.<pool>.instance.<id>.segment` | Segment | that instance |
| `dynaserve.<pool>.instance.<id>.control` | ControlMessage, HandoffCommand | that instance |
| `dynaserve.<pool>.instances.control` | SegmentCancel, SetBatcher, … | every instance |
| `dynaserve.<pool>.telemetry.<id>` | InstanceLoad | schedulers, gateways, dashboards |
| `dynaserve.<pool>.prefixes.<id>` | PrefixUpdate | schedulers |
| `dynaserve.<pool>.handoff.<coordinator>` | HandoffOpen, HandoffEvent | that coordinator |
| `dynaserve.<pool>.gateway.<id>.tokens` | TokenFrame, SegmentFailed, SegmentTiming | that gateway |
| `dynaserve.<pool>.events.request` | RequestRecord | anyone |
| `dynaserve.<pool>.events.handoff` | HandoffRecord | anyone |
| bucket `dynaserve_<pool>_registry` | Record | everybody |
| stream `dynaserve_<pool>_records` | RequestRecord, HandoffRecord | gateways, `explain` |
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Subjects:
    """The subjects of one pool."""

    pool: str

    @property
    def root(self) -> str:
        return f"dynaserve.{self.pool}"

    @property
    def place(self) -> str:
        return f"{self.root}.place"

    @property
    def all_schedulers(self) -> str:
        return f"{self.root}.schedulers.control"

    def segment(self, instance_id: str) -> str:
        return f"{self.root}.instance.{instance_id}.segment"

    def control(self, instance_id: str) -> str:
        return f"{self.root}.instance.{instance_id}.control"

    @property
    def all_instances(self) -> str:
        return f"{self.root}.instances.control"

    def telemetry(self, instance_id: str = "*") -> str:
        return f"{self.root}.telemetry.{instance_id}"

    def prefixes(self, instance_id: str = "*") -> str:
        return f"{self.root}.prefixes.{instance_id}"

    def handoff(self, coordinator_id: str) -> str:
        return f"{self.root}.handoff.{coordinator_id}"

    def gateway(self, gateway_id: str) -> str:
        return f"{self.root}.gateway.{gateway_id}.tokens"

    @property
    def request_events(self) -> str:
        return f"{self.root}.events.request"

    @property
    def handoff_events(self) -> str:
        return f"{self.root}.events.handoff"

    @property
    def records_stream(self) -> str:
        return f"dynaserve_{self.pool}_records"

    @property
    def registry_bucket(self) -> str:
        return f"dynaserve_{self.pool}_registry"
