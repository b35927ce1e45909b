"""What the steps of each instance were like lately, as telemetry sampled them. Pure."""

from bisect import bisect_right
from collections import deque
from statistics import median_low
from typing import Literal

from shared.schemas.events import StepsSeen
from shared.schemas.telemetry import InstanceLoad
from shared.schemas.tokens import SegmentTiming

MAX_SAMPLES = 1200
"""Per instance: one minute of telemetry at its highest rate."""

Sample = tuple[float, float, int, int]
"""Unix time, step seconds, decodes, requests waiting."""


class StepHistory:
    """A bounded memory of steps; forgets an instance that left with ``forget``."""

    def __init__(self, max_samples: int = MAX_SAMPLES) -> None:
        self._max_samples = max_samples
        self._samples: dict[str, deque[Sample]] = {}
        self._num_steps: dict[str, int] = {}

    def add(self, load: InstanceLoad) -> None:
        """An idle instance repeats its last report: only new steps count."""
        if self._num_steps.get(load.instance_id) == load.num_steps or load.step_s <= 0:
            return
        self._num_steps[load.instance_id] = load.num_steps
        samples = self._samples.setdefault(load.instance_id, deque(maxlen=self._max_samples))
        samples.append((load.at_s, load.step_s, load.num_decodes, load.num_waiting))

    def forget(self, instance_id: str) -> None:
        self._samples.pop(instance_id, None)
        self._num_steps.pop(instance_id, None)

    def of_segment(self, timing: SegmentTiming, first_token_s: float) -> list[StepsSeen]:
        """The steps while a segment ran, before and after the request's first token."""
        started_s = timing.received_s if timing.started_s is None else timing.started_s
        turn_s = min(max(first_token_s, started_s), timing.ended_s)
        both = (
            self._seen(timing.instance_id, "prefill", started_s, turn_s),
            self._seen(timing.instance_id, "decode", turn_s, timing.ended_s),
        )
        return [seen for seen in both if seen is not None]

    def _seen(
        self, instance_id: str, phase: Literal["prefill", "decode"], from_s: float, to_s: float
    ) -> StepsSeen | None:
        """The steps that ended in ``(from_s, to_s]`` (unix); None when there is no report."""
        samples = list(self._samples.get(instance_id, ()))
        first = bisect_right(samples, from_s, key=lambda sample: sample[0])
        last = bisect_right(samples, to_s, key=lambda sample: sample[0])
        window = samples[first:last]
        if not window:
            return None
        steps_s = [sample[1] for sample in window]
        return StepsSeen(
            instance_id=instance_id,
            phase=phase,
            num_samples=len(window),
            median_step_s=median_low(steps_s),
            longest_step_s=max(steps_s),
            most_decodes=max(sample[2] for sample in window),
            most_waiting=max(sample[3] for sample in window),
        )
