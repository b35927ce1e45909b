"""Instances as the live page shows them. Pure."""

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from shared.schemas.live import InstanceStatus
from shared.schemas.registry import InstanceRecord
from shared.schemas.telemetry import InstanceLoad

SILENT_S = 3.0
"""An instance repeats its report every second; after this it counts as silent."""

SAMPLE_S = 0.5
NUM_SAMPLES = 4


RECENT_S = 2.0
"""The step that is shown is the worst of those reported in this time: the last one alone would
hide a slow instance most of the time."""

MAX_RECENT = 100


class Step(NamedTuple):
    """A reported step; ``share`` is that of the tightest TBT objective it took."""

    share: float
    step_s: float
    predicted_s: float


NO_STEP = Step(0.0, 0.0, 0.0)


class Instances:
    """When each instance last reported, its recent steps, and how fast it makes tokens."""

    def __init__(self) -> None:
        self._steps: dict[str, deque[tuple[float, int, Step]]] = {}
        self._heard_s: dict[str, float] = {}
        self._made: dict[str, deque[tuple[float, int]]] = {}

    def add(self, load: InstanceLoad, now_s: float) -> None:
        self._heard_s[load.instance_id] = now_s
        made = self._made.setdefault(load.instance_id, deque(maxlen=NUM_SAMPLES))
        if made and made[-1][1] > load.num_generated_tokens:
            made.clear()  # it was restarted
        if not made or now_s - made[-1][0] >= SAMPLE_S:
            made.append((now_s, load.num_generated_tokens))
        steps = self._steps.setdefault(load.instance_id, deque(maxlen=MAX_RECENT))
        if load.step_s > 0 and not (steps and steps[-1][1] == load.num_steps):
            steps.append((now_s, load.num_steps, _step(load)))

    def forget(self, instance_id: str) -> None:
        self._steps.pop(instance_id, None)
        self._heard_s.pop(instance_id, None)
        self._made.pop(instance_id, None)

    def statuses(
        self,
        records: Mapping[str, InstanceRecord],
        loads: Mapping[str, InstanceLoad],
        now_s: float,
    ) -> list[InstanceStatus]:
        """All registered instances, by id in the order of numbers."""
        ordered = sorted(records, key=_natural)
        return [self._status(records[key], loads.get(key), now_s) for key in ordered]

    def _status(
        self, record: InstanceRecord, load: InstanceLoad | None, now_s: float
    ) -> InstanceStatus:
        silent_s = now_s - self._heard_s.get(record.instance_id, now_s)
        step = self._worst_step(record.instance_id, load, now_s)
        return InstanceStatus(
            instance_id=record.instance_id,
            state="silent" if silent_s > SILENT_S else record.state,
            silent_s=silent_s,
            role=record.role,
            device=record.device,
            engine=record.engine,
            mode=load.batcher_mode if load else "",
            num_decodes=load.num_decodes if load else 0,
            num_prefills=max(0, load.num_running - load.num_decodes) if load else 0,
            num_waiting=load.num_waiting if load else 0,
            num_waiting_for_kv=load.num_waiting_for_kv if load else 0,
            outstanding_prefill_tokens=load.outstanding_prefill_tokens if load else 0,
            budget_tokens=load.budget_tokens if load else 0,
            step_margin=load.step_margin if load else 0.0,
            kv_used=1 - load.free_blocks / load.num_blocks if load and load.num_blocks else 0.0,
            step_s=step.step_s,
            predicted_step_s=step.predicted_s,
            step_share=step.share,
            tokens_per_s=self._tokens_per_s(record.instance_id),
            num_preemptions=load.num_preemptions if load else 0,
        )

    def _worst_step(self, instance_id: str, load: InstanceLoad | None, now_s: float) -> Step:
        """Of the recent ones; while a long one runs nothing is recent, and the last one counts."""
        recent = [s for at_s, _, s in self._steps.get(instance_id, ()) if now_s - at_s <= RECENT_S]
        if not recent and load is not None and load.num_running > 0:
            recent = [_step(load)]
        return max(recent, default=NO_STEP)

    def _tokens_per_s(self, instance_id: str) -> float:
        made = self._made.get(instance_id)
        if made is None or len(made) < 2:
            return 0.0
        (from_s, first), (to_s, last) = made[0], made[-1]
        return (last - first) / (to_s - from_s)


def _step(load: InstanceLoad) -> Step:
    return Step(1 - load.slo_headroom, load.step_s, load.predicted_step_s)


def _natural(name: str) -> tuple[str, int, str]:
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or 0), name
