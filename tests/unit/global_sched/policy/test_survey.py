"""What bounds leave out of a survey could not have won, ties and rounding included."""

from hypothesis import given
from hypothesis import strategies as st

from services.global_sched.policy.dynaserve import DynaServe, DynaServeSettings
from services.global_sched.policy.survey import Survey
from services.global_sched.policy.views import (
    InstanceView,
    LengthQuantiles,
    PoolView,
    RequestView,
    cost_of,
)
from shared.latency_model import LatencyModel

MODELS = st.sampled_from(
    [LatencyModel(8.8, 0.043, 6e-5, 0.039, 1.8e-6), LatencyModel(9.7, 0.05, 8e-5, 0.03, 2.1e-6)]
)
FEW = st.sampled_from([0, 1, 16, 900, 901, 20_000])
"""Few values: many instances are alike, and costs tie."""


@st.composite
def pools(draw: st.DrawFn) -> PoolView:
    model, margin = draw(MODELS), draw(st.sampled_from([0.0, 0.08]))
    alike = draw(st.booleans())

    def instance(index: int) -> InstanceView:
        decodes = draw(st.one_of(st.just(0), st.integers(0, 300)))
        pending = draw(st.integers(0, 40))
        return InstanceView(
            f"i{index}",
            model if alike else draw(MODELS),
            "any",
            decodes,
            1500 * decodes,
            draw(FEW),
            draw(FEW),
            0,
            pending,
            900 * pending,
            draw(st.sampled_from([526_000, 300_000, 1000, 400, -50])),
            526_000,
            static_tokens=draw(st.sampled_from([None, None, 512])),
            link_bytes_per_s=draw(st.sampled_from([270e9, 5e9])),
            step_margin=margin,
        )

    number = draw(st.integers(1, 9))
    return PoolView(0.0, tuple(instance(index) for index in range(number)))


@st.composite
def requests(draw: st.DrawFn) -> RequestView:
    prompt = draw(st.one_of(st.integers(1, 40), st.integers(1, 30_000)))
    mean = draw(st.floats(1.0, 4000.0))
    held = st.dictionaries(st.sampled_from(["i0", "i1", "i3"]), st.integers(0, prompt))
    return RequestView(
        "r",
        0.0,
        prompt,
        draw(st.integers(1, 4096)),
        LengthQuantiles(mean / 10, mean, mean * 3, mean),
        draw(st.floats(0.01, 10.0)),
        draw(st.sampled_from([0.01, 0.025, 0.05, 0.1, 0.5])),
        cached_tokens=draw(held) if draw(st.booleans()) else {},
    )


@given(asked=requests(), pool=pools())
def test_the_cheapest_is_the_first_of_the_cheapest_in_the_whole_list(
    asked: RequestView, pool: PoolView
) -> None:
    survey = Survey(asked, pool, DynaServeSettings())
    uncut, cut = survey.best_uncut(), survey.best_cut()
    below_uncut = survey.best_cut(uncut[5])
    assert uncut == min(survey.uncut(), key=cost_of)
    for count in (0, 1, 3, 8, 100):
        assert survey.cheapest(count) == sorted(survey.weighed, key=cost_of)[:count]
    assert cut == min(survey.cuts(), key=cost_of, default=None)
    assert below_uncut == (cut if cut is not None and cut[5] < uncut[5] else None)
    assert all(each[5] >= 0.0 for each in survey.weighed)


@given(asked=requests(), pool=pools())
def test_what_is_chosen_is_among_what_is_told_to_be_weighed(
    asked: RequestView, pool: PoolView
) -> None:
    decision = DynaServe().place(asked, pool)
    chosen = (decision.alpha_id, decision.beta_id, decision.cut, *decision.chosen)
    assert chosen in decision.weighed
    at_prompt = [each for each in decision.weighed if each[2] == asked.num_prompt_tokens]
    best = min(at_prompt, key=cost_of, default=None)
    assert decision.disaggregated == (best[3:] if best else None)
