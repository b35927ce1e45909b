"""The live view of a pool: takes in what happens, gives a snapshot when somebody looks."""

from collections import deque

from services.gateway.live.attainment import Attainment
from services.gateway.live.flows import Flows
from services.gateway.live.instances import Instances
from shared.explanation import explain
from shared.registry import PoolRegistry
from shared.schemas.events import RequestRecord
from shared.schemas.handoff import HandoffRecord
from shared.schemas.live import LiveSnapshot, RequestRow
from shared.schemas.telemetry import InstanceLoad

MAX_ROWS = 60


class LiveView:
    """Bounded in everything it keeps; taking something in costs microseconds."""

    def __init__(self, pool: str, gateway_id: str, registry: PoolRegistry, now_s: float) -> None:
        self._pool = pool
        self._gateway_id = gateway_id
        self._registry = registry
        self._attainment = Attainment(now_s)
        self._flows = Flows()
        self.instances = Instances()
        self._requests: deque[RequestRecord] = deque(maxlen=MAX_ROWS)
        self._rows: dict[str, RequestRow] = {}

    def add_request(self, record: RequestRecord) -> None:
        self._requests.append(record)
        self._attainment.add(record, record.arrival_at_s + record.e2e_s)

    def add_handoff(self, record: HandoffRecord, now_s: float) -> None:
        self._flows.add(record, record.released_at_s or now_s)

    def snapshot(
        self,
        loads: dict[str, InstanceLoad],
        problem: str | None,
        num_in_flight: int,
        now_s: float,
    ) -> LiveSnapshot:
        registry = self._registry
        flows, num_flows = self._flows.busiest(now_s)
        return LiveSnapshot(
            at_s=now_s,
            pool=self._pool,
            gateway_id=self._gateway_id,
            problem=problem,
            policies=sorted({record.policy for record in registry.schedulers.values()}),
            num_gateways=len(registry.gateways),
            num_schedulers=len(registry.schedulers),
            num_coordinators=len(registry.coordinators),
            num_in_flight=num_in_flight,
            window_s=self._attainment.window_s(now_s),
            classes=self._attainment.statuses(now_s),
            instances=self.instances.statuses(registry.instances, loads, now_s),
            flows=flows,
            num_flows=num_flows,
            handoffs=self._flows.rows(),
            requests=self._request_rows(),
        )

    def _request_rows(self) -> list[RequestRow]:
        """The newest first; each is worked out once."""
        newest = list(reversed(self._requests))
        self._rows = {
            record.request_id: self._rows.get(record.request_id) or _row(record)
            for record in newest
        }
        return list(self._rows.values())


def _row(record: RequestRecord) -> RequestRow:
    plan = record.plan
    causes = explain(record).causes
    return RequestRow(
        request_id=record.request_id,
        http_request_id=record.http_request_id,
        at_s=record.arrival_at_s + record.e2e_s,
        slo_class=record.slo.name,
        slo=record.slo,
        num_prompt_tokens=record.num_prompt_tokens,
        num_output_tokens=record.num_output_tokens,
        alpha_id=plan.alpha_id if plan else None,
        beta_id=plan.beta_id if plan else None,
        cut=plan.cut if plan else None,
        ttft_s=record.ttft_s,
        tbt_p99_s=record.tbt_p99_s,
        e2e_s=record.e2e_s,
        outcome=record.outcome,
        slo_met=record.slo_met,
        epochs=record.epochs,
        cause=causes[0].kind if causes else None,
    )
