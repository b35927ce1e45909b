"""The SLO batcher: how many tokens the next engine step may hold, and who goes first.

Pure: no engine, no clock. The engine's scheduler calls it once per step, in this order:

1.  Count what runs: ``num_decodes`` (requests with one token to compute), the sum of their
    contexts, and ``slack_ms``: the smallest over decodes of (TBT SLO - time since its last
    token). A step starts when the last one ended, so this is the tightest SLO itself except for a
    decode that just arrived by handoff or sat out a step. A decode that is already past its SLO
    yields: it has the whole SLO again, and so has one whose first token is not there yet. Use
    ``math.inf`` when nothing decodes.
2.  Order the prompts by ``prompt_ranks`` (sort keys, smallest first): prompts that can still meet
    their deadline at the speed that the decodes leave them (``prompt_speed``; without decodes about
    as much), earliest deadline first, but those with hardly anything left before all others; then
    the lost ones, oldest first. Where decodes fill the steps all are lost but those ends, and go
    by age. When ``lost_turn`` is true the oldest lost prompt, it alone, goes before all others, so
    none starves (``in_turn``).
3.  ``plan(StepLoad(...))`` gives ``token_budget``: decodes plus prefill tokens of this step.
    ``StepLoad.prompts`` yields (tokens to compute, tokens already computed) in that order and is
    read only as far as the step can reach. Decodes go first and always fit; the rest goes to the
    prompts in their order. With vLLM: set ``max_num_scheduled_tokens = plan.token_budget`` and
    sort ``running`` so that decodes lead, then prompts by rank; sort ``waiting`` likewise.
4.  After the step call ``observe(plan, shape, measured_ms)`` with what was really computed.

``slo`` mode: the largest budget whose predicted time fits the slack; without decodes a long step.
``static:N`` mode: N tokens whatever happens, which is what vLLM does by itself.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple, TypeVar

from shared.latency_model import TYPICAL_CONTEXT_TOKENS, LatencyModel, StepShape
from shared.online_latency_model import PROFILED, OnlineLatencyModel, Trust

MAX_PROMPTS_READ = 256
TAIL_TOKENS = 16
"""A prompt with no more left does not queue: it takes less time than it would wait. The end of a
prompt cut one token before it comes by handoff to an instance that may be at a prompt of thousands.
"""
FORCED_EVERY = 128
"""Rarer than one step in a hundred: the P99 of the gaps between tokens does not see them."""
P = TypeVar("P")
Rank = tuple[int, float]
"""Sort key of a prompt, smallest first: tails, then who can make it, both by deadline; then the
lost by age."""
TAIL, IN_TIME, LOST = range(3)


@dataclass(frozen=True, slots=True)
class BatcherSettings:
    """Limits of the batcher. Token counts and milliseconds."""

    max_num_batched_tokens: int = 8192
    min_prefill_tokens: int = 16
    """The first prompt gets this much now and then, however tight the slack: one step in
    ``FORCED_EVERY``, or in ``lost_every`` where the decodes alone are over their SLO anyway.

    In the other steps a prompt waits when the decodes fill the slack: it would join them and push
    every one of them over its SLO, while its own TTFT can still wait.
    """
    decode_fill: float = 0.98
    """Decodes join as long as the next step, without prompts, takes no more of the slack: contexts
    grow on."""
    graph_tokens: int = 0
    """Largest step that the engine runs as a captured graph; 0: steps of all sizes are alike.

    A larger one is launched kernel by kernel, which takes the host tens of milliseconds, the device
    often waits for it, and its time is hard to predict."""
    worth_launching: float = 2.0
    """A step goes beyond the graph where it then holds so many times as many tokens: as fast as
    graphs of half its size, and with fewer base costs."""
    free_step_ms: float = 160.0
    """Longest step in which nothing decodes: long enough to spread the step's base cost."""
    free_step_share: float = 0.3
    """Without decodes a step takes this share of the waiting prompts, at least the first one."""
    free_judged_share: float = 0.35
    """Without decodes a prompt is judged late by this share of the speed, about what decodes would
    leave it. Where not all can be in time the long ones then yield early, and more are."""
    lost_every: int = 16
    """One step in so many may lead with a prompt whose deadline is already lost."""
    spike_floor: float = 0.4
    spike_recovery: float = 0.05
    margin_quantile: float = 0.998
    margin_window: int = 1024
    """Steps of a size are reckoned to be late by this quantile of the errors of the last ones. One
    late step is a gap of every request that decodes in it, and a request of some hundred tokens may
    have one."""
    borne_quantile: float = 0.98
    """The same where steps of no size are late so rarely."""
    max_margin: float = 1.0
    """No step is sized for less than the slack / (1 + this)."""
    hiccup_times: float = 3.0
    hiccup_least: float = 0.1
    hiccup_share: float = 0.004
    hiccup_window: int = 100
    """Of so many steps of a size, at least this window, that share may be late by more than so many
    times what 98 % of them are, and so much: hiccups of the host, which hit steps of any size."""
    retried_every: int = 4096
    """A size for which steps were too late is tried again, once, after so many."""


class StepLoad(NamedTuple):
    """What the next step could compute."""

    num_decodes: int
    decode_context_tokens: int
    slack_ms: float
    prompts: Iterable[tuple[int, int]] = ()
    """(tokens to compute, tokens already computed) of each prompt, in the order of service."""


class StepPlan(NamedTuple):
    """What the next step may compute."""

    token_budget: int
    limit_ms: float
    """The time the step was sized for (``math.inf`` in static mode and without decodes)."""
    slack_ms: float = math.inf
    """The time it may take (the same)."""


class PromptView(NamedTuple):
    """A prompt that waits or is partly computed."""

    arrival_s: float
    deadline_s: float
    remaining_tokens: int


class PromptSpeed(NamedTuple):
    """How fast an instance computes prompts beside its decodes."""

    tokens_per_s: float
    step_s: float = 0.0
    """A prompt's token comes at the end of a step, and this is how long one takes."""


def prompt_speed(
    model: LatencyModel,
    num_decodes: int,
    decode_context_tokens: int,
    limit_ms: float,
    most_tokens: int,
    least_tokens: float,
    free_share: float,
) -> PromptSpeed:
    """Speed in steps of up to ``limit_ms`` and ``most_tokens``, decodes first; ``free_share`` of
    the whole without decodes. ``least_tokens``: what prompts get of a step that decodes fill.
    """
    full = 1e3 / max(model.prefill_ms, 1e-6)
    if num_decodes == 0:
        return PromptSpeed(free_share * full)
    decode_ms = model.decode_step_ms(num_decodes, decode_context_tokens)
    fits = model.prefill_tokens_in(limit_ms - decode_ms, TYPICAL_CONTEXT_TOKENS)
    tokens = min(fits, max(most_tokens - num_decodes, 0))
    step_ms = max(decode_ms + model.prompt_ms(tokens, TYPICAL_CONTEXT_TOKENS), 1e-6)
    return PromptSpeed(min(1e3 * max(tokens, least_tokens) / step_ms, full), 1e-3 * step_ms)


def is_lost(prompt: PromptView, now_s: float, speed: PromptSpeed) -> bool:
    """True when the prompt misses its deadline even if it is served first from now on.

    A tail never counts as lost: to yield would save no time, and its whole context holds KV.
    """
    return misses(prompt.deadline_s, prompt.remaining_tokens, now_s, speed)


def misses(deadline_s: float, remaining_tokens: int, now_s: float, speed: PromptSpeed) -> bool:
    """`is_lost`, of a prompt given by its parts."""
    if remaining_tokens <= TAIL_TOKENS:
        return False
    tokens_per_s, step_s = speed
    needs_s = remaining_tokens / tokens_per_s
    return now_s + (needs_s if needs_s > step_s else step_s) > deadline_s


def prompt_ranks(
    prompts: Iterable[tuple[float, float, int]], now_s: float, speed: PromptSpeed
) -> list[Rank]:
    """Of each of ``prompts``, given as `PromptView` or a tuple like it: one loop before a step."""
    ranks = list[Rank]()
    for arrival_s, deadline_s, remaining_tokens in prompts:
        if remaining_tokens <= TAIL_TOKENS:
            ranks.append((TAIL, deadline_s))
        elif misses(deadline_s, remaining_tokens, now_s, speed):
            ranks.append((LOST, arrival_s))
        else:
            ranks.append((IN_TIME, deadline_s))
    return ranks


def in_turn(prompts: Sequence[P], ranks: Sequence[Rank], lost_turn: bool) -> list[P]:
    """By their ranks (`prompt_ranks`); in a turn of the lost ones their oldest leads, it alone."""
    order = sorted(range(len(prompts)), key=ranks.__getitem__)
    if lost_turn and order and ranks[order[-1]][0] == LOST:
        oldest = next(place for place, index in enumerate(order) if ranks[index][0] == LOST)
        order.insert(0, order.pop(oldest))
    return [prompts[index] for index in order]


class Lateness:
    """How much longer steps of one size take than predicted: the last errors, as shares."""

    __slots__ = ("_errors", "_ordered", "_settings", "late", "num_refused")

    def __init__(self, settings: BatcherSettings, initial: float) -> None:
        self.late = initial
        """Their upper quantile, at least 0."""
        self.num_refused = 0
        """Plans since the last step of this size for which it was too late."""
        self._settings = settings
        self._errors = deque([initial])
        self._ordered = [initial]

    def learn(self, error: float) -> None:
        ordered = self._ordered
        if len(self._errors) == self._settings.margin_window:
            del ordered[bisect_left(ordered, self._errors.popleft())]
        self._errors.append(error)
        insort(ordered, error)
        self.late = self._rarely_late()
        self.num_refused = 0

    def forget_worst(self) -> None:
        """So that a few hiccups do not shut a size out for ever."""
        self.num_refused = 0
        if len(self._ordered) > 1:
            self._errors.remove(self._ordered.pop())
            self.late = self._rarely_late()

    def often_late(self) -> float:
        """The same, where being late more often must be borne, if only by a single step."""
        if len(self._ordered) == 1:
            return self.late
        return max(0.0, min(self._upper(self._settings.borne_quantile), self._ordered[-2]))

    def _rarely_late(self) -> float:
        """The upper quantile, without the hiccups that are borne: smaller steps have them too."""
        settings, ordered = self._settings, self._ordered
        late = self._upper(settings.margin_quantile)
        if len(ordered) < settings.hiccup_window:
            return late
        usual = self._upper(settings.borne_quantile)
        if late <= settings.hiccup_times * usual + settings.hiccup_least:
            return late
        num_hiccups = max(1, int(settings.hiccup_share * len(ordered)))
        return min(late, max(0.0, ordered[-num_hiccups - 1]))

    def _upper(self, quantile: float) -> float:
        return max(0.0, self._ordered[math.ceil(quantile * len(self._ordered)) - 1])


class Margin:
    """How long a step of one kind may be predicted to take, for it to end in time.

    What a step is late by depends on its size, and neither in proportion nor evenly: a small one
    waits for its launch, a hiccup of the host lengthens all alike. One margin for all sizes,
    relative to them, feeds on itself: it makes steps small, whose errors are relatively large,
    which makes it larger. So lateness is kept apart for sizes within half an octave, and the
    largest size that ends in time is taken. Where none does as often as asked for, smaller
    steps would be late as well and prompts would wait: then the largest that mostly does.
    """

    def __init__(self, settings: BatcherSettings, initial: float) -> None:
        self._settings = settings
        self._initial = min(initial, settings.max_margin)
        self._sizes = dict[int, Lateness]()

    def limit_ms(self, bound_ms: float) -> float:
        """The longest prediction that may be trusted to end within ``bound_ms``."""
        if not 0.0 < bound_ms < math.inf or not (self._sizes or self._initial):
            return bound_ms
        limit_ms = self._largest_ms(bound_ms, strict=True)
        if limit_ms is None:
            limit_ms = self._largest_ms(bound_ms, strict=False)
        least_ms = bound_ms / (1.0 + self._settings.max_margin)
        return least_ms if limit_ms is None else max(limit_ms, least_ms)

    def _largest_ms(self, bound_ms: float, strict: bool) -> float | None:
        """None where no size that may be planned ends in time."""
        least_ms = bound_ms / (1.0 + self._settings.max_margin)
        size, cap_ms = _size_of(bound_ms), bound_ms
        while cap_ms > least_ms:
            smallest_ms = _smallest_ms(size)
            known = self._sizes.get(size)
            if known is None:
                late = self._guess(size)
            else:
                late = known.late if strict else known.often_late()
            fits_ms = bound_ms / (1.0 + late)
            if fits_ms >= smallest_ms:
                return min(fits_ms, cap_ms)
            if known is not None and strict:
                known.num_refused += 1
                if known.num_refused >= self._settings.retried_every:
                    fits_ms = bound_ms / (1.0 + known.often_late())
                    known.forget_worst()
                    if fits_ms >= smallest_ms:
                        return min(fits_ms, cap_ms)
            size, cap_ms = size - 1, smallest_ms
        return None

    def learn(self, predicted_ms: float, error: float) -> None:
        """From a step with decodes."""
        size = _size_of(predicted_ms)
        known = self._sizes.get(size)
        if known is None:
            known = self._sizes[size] = Lateness(self._settings, self._guess(size))
        known.learn(error)

    def _guess(self, size: int) -> float:
        """What steps are late by of whose size nothing is known: no more than the next smaller."""
        smaller = self._sizes.get(size - 1)
        return self._initial if smaller is None else min(self._initial, smaller.late)


def _size_of(ms: float) -> int:
    """Half octaves."""
    return math.floor(2.0 * math.log2(max(ms, 1e-3)))


def _smallest_ms(size: int) -> float:
    return math.sqrt(2.0**size)


class Batcher:
    """Sizes engine steps. Invariant: every decode fits, and a waiting prompt always progresses.

    Three corrections act together: the latency model follows the measured steps; a margin is kept
    for what error remains in steps of each size, apart for captured and for launched ones; and a
    step over its slack shrinks the following ones at once, an effect that wears off step by step.
    """

    def __init__(
        self,
        model: LatencyModel,
        settings: BatcherSettings | None = None,
        mode: str = "slo",
        initial_margin: float = 0.05,
        trust: Trust = PROFILED,
    ) -> None:
        self.settings = settings or BatcherSettings()
        self.online = OnlineLatencyModel(model, trust)
        self.captured = Margin(self.settings, initial_margin)
        self.launched = Margin(self.settings, initial_margin)
        self._kept = initial_margin
        self.relief = 1.0
        self.step_index = 0
        self.set_mode(mode)

    def set_mode(self, mode: str) -> None:
        self.static_tokens = parse_mode(mode)
        self.mode = mode

    @property
    def model(self) -> LatencyModel:
        return self.online.model

    @property
    def margin(self) -> float:
        """Steps of prompts beside decodes are planned for the slack / (1 + this): as the last one
        was. 0 in static mode, which looks at no clock."""
        return self._kept if self.static_tokens is None else 0.0

    @property
    def lost_turn(self) -> bool:
        """True when a prompt whose deadline is lost, if there is one, leads the coming step."""
        return (self.step_index + 1) % self.settings.lost_every == 0

    def prompt_speed(
        self, num_decodes: int, decode_context_tokens: int, tbt_ms: float
    ) -> PromptSpeed:
        """By which a prompt is judged lost; ``tbt_ms`` is the tightest SLO of those that decode."""
        most = self.static_tokens or self.settings.max_num_batched_tokens
        limit_ms = tbt_ms / (1.0 + self.margin) if self.static_tokens is None else math.inf
        least = self.settings.min_prefill_tokens / FORCED_EVERY
        free = self.settings.free_judged_share
        return prompt_speed(
            self.online.model, num_decodes, decode_context_tokens, limit_ms, most, least, free
        )

    def plan(self, load: StepLoad) -> StepPlan:
        self.step_index += 1
        num_decodes, context_tokens, slack_ms, coming = load
        if self.static_tokens is not None:
            return StepPlan(max(self.static_tokens, num_decodes), math.inf)
        if num_decodes == 0:
            # Read twice below, and engines may give an iterator: it would be empty the second time.
            prompts = tuple(islice(coming, MAX_PROMPTS_READ))
            tokens = self._prefill_tokens(self._free_limit_ms(prompts), load, prompts)
            return StepPlan(tokens, math.inf)
        bound_ms = slack_ms * self.relief
        limit_ms = self._margin_of(num_decodes + (1 if coming else 0)).limit_ms(bound_ms)
        if not coming:
            return StepPlan(num_decodes, limit_ms, slack_ms)
        settings, least = self.settings, 0
        decode_ms = self.online.model.decode_step_ms(num_decodes, context_tokens)
        if self.step_index % (settings.lost_every if decode_ms > limit_ms else FORCED_EVERY) == 0:
            coming = prompts = tuple(islice(coming, MAX_PROMPTS_READ))
            least = min(settings.min_prefill_tokens, prompts[0][0]) if prompts else 0
        prefill, limit_ms = self._beside_decodes(bound_ms, limit_ms, load, coming)
        self._kept = bound_ms / limit_ms - 1.0 if 0.0 < limit_ms < bound_ms else 0.0
        return StepPlan(num_decodes + max(prefill, least), limit_ms, slack_ms)

    def _margin_of(self, tokens: int) -> Margin:
        """Of steps with so many tokens."""
        return self.captured if tokens <= self.settings.graph_tokens else self.launched

    def _beside_decodes(
        self, bound_ms: float, limit_ms: float, load: StepLoad, prompts: Iterable[tuple[int, int]]
    ) -> tuple[int, float]:
        """Prefill tokens that end within ``bound_ms``, and the limit they were sized for; if the
        step is no larger than a graph where it could be, ``limit_ms``, but for its launch: smaller
        it would be as late, with less of the prompts done.
        """
        settings = self.settings
        if limit_ms < self.online.launch_ms <= bound_ms:
            limit_ms = self.online.launch_ms
        room = settings.graph_tokens - load.num_decodes
        if room <= 0:
            return self._prefill_tokens(limit_ms, load, prompts), limit_ms
        coming, seen = iter(prompts), list[tuple[int, int]]()
        prefill = self._prefill_tokens(limit_ms, load, _noting(coming, seen), room)
        if prefill == room:  # only the graph was in the way
            launched_ms = self.launched.limit_ms(bound_ms)
            more = self._prefill_tokens(launched_ms, load, chain(seen, coming))
            if load.num_decodes + more >= settings.worth_launching * settings.graph_tokens:
                return more, launched_ms
        return prefill, limit_ms

    def _free_limit_ms(self, prompts: Iterable[tuple[int, int]]) -> float:
        """Without decodes: one prompt a step, unless so many wait that the base cost matters."""
        model, settings = self.online.model, self.settings
        longest_ms, share = settings.free_step_ms, settings.free_step_share
        enough_ms = longest_ms / share
        first_ms = total_ms = 0.0
        for tokens, context in prompts:
            total_ms += model.prompt_ms(tokens, context)
            first_ms = first_ms or total_ms
            if total_ms > enough_ms:
                break
        wanted_ms = max(first_ms, share * total_ms)
        return model.base_ms + 1e-6 + min(wanted_ms, longest_ms)

    def _prefill_tokens(
        self,
        limit_ms: float,
        load: StepLoad,
        prompts: Iterable[tuple[int, int]],
        most_tokens: int | None = None,
    ) -> int:
        """Tokens of the prompts, taken in order, that fit the limit beside the load's decodes.

        A prompt that would end in this step decodes in the next: where that step would be too long,
        its last token waits. Else every decode there would miss its SLO for one that came.
        """
        model, settings = self.online.model, self.settings
        num_decodes, context_tokens, _, _ = load
        next_ms = model.decode_step_ms(num_decodes, context_tokens)
        room_ms = limit_ms - next_ms
        longest_ms = limit_ms * settings.decode_fill if num_decodes else math.inf
        left = max(settings.max_num_batched_tokens - num_decodes, 0)
        if most_tokens is not None:
            left = min(left, most_tokens)
        total = 0
        _, decode_ms, context_ms, _, _ = model
        for tokens, context in prompts:
            fits = min(tokens, left, model.prefill_tokens_in(room_ms, context))
            next_ms += decode_ms + context_ms * (tokens + context)
            if fits == tokens and next_ms > longest_ms:
                fits -= 1
            total += fits
            left -= fits
            if fits < tokens:
                break
            room_ms -= model.prompt_ms(fits, context)
        return total

    def observe(
        self,
        plan: StepPlan,
        shape: StepShape,
        measured_ms: float,
        seen_ms: float | None = None,
        next_tokens: int = 0,
    ) -> None:
        """Learn from the step just run.

        ``measured_ms`` is how long it took; ``seen_ms``, where that is another time, how long its
        decodes waited for it. The model learns the first, margin and relief keep to the second:
        what the host adds is not the step's, and still a gap. ``next_tokens``: what the next step
        holds, if the engine began it before this one ended. Where that one is launched kernel by
        kernel the host sees this one's end late, which tells nothing of this one's size.
        """
        predicted_ms = self.online.step_ms(shape)
        self.online.observe(shape, measured_ms)
        seen_ms = measured_ms if seen_ms is None else seen_ms
        if shape.num_decodes and plan.limit_ms < math.inf:
            margin = self._margin_of(shape.num_decodes + shape.prefill_tokens)
            held_up = 0 < self.settings.graph_tokens < next_tokens
            late_ms = (min(measured_ms, seen_ms) if held_up else seen_ms) - predicted_ms
            margin.learn(predicted_ms, late_ms / max(predicted_ms, 1e-6))
        # The slack and not what relief left of it: small steps are the least exact, and would be
        # reason enough for the next ones to be small.
        limit_ms = plan.slack_ms
        if seen_ms > limit_ms > 0.0:
            shrunk = self.relief * limit_ms / seen_ms
            self.relief = max(self.settings.spike_floor, shrunk)
        else:
            self.relief += self.settings.spike_recovery * (1.0 - self.relief)


def _noting(
    prompts: Iterator[tuple[int, int]], seen: list[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """The same, and what was taken is in ``seen``: engines give prompts once."""
    for prompt in prompts:
        seen.append(prompt)
        yield prompt


def parse_mode(mode: str) -> int | None:
    """Tokens of 'static:N', None for 'slo'."""
    if mode == "slo":
        return None
    kind, _, tokens = mode.partition(":")
    if kind != "static" or not tokens.isdigit() or int(tokens) < 1:
        raise ValueError(f"batcher mode must be 'slo' or 'static:N', not {mode!r}")
    return int(tokens)
