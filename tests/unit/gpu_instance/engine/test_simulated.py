"""The simulated engine behind the actor: same tokens wherever the cut is, no block lost."""

import asyncio

import pytest

from services.gpu_instance.engine.simulated import SimulatedEngine
from services.gpu_instance.engine.simulated_request import reference_tokens
from shared.bus import Delivery
from shared.errors import EngineFailed
from shared.schemas.handoff import HandoffAbort
from shared.schemas.segment import SegmentCancel
from shared.schemas.telemetry import InstanceLoad
from tests.unit.gpu_instance.stage import SMALL, SUBJECTS, on_stage, segment


def expected(prompt: int = 40, max_tokens: int = 12, request_id: str = "r") -> dict[int, int]:
    made = reference_tokens(segment(request_id, prompt=prompt, max_tokens=max_tokens), 1000)
    return dict(enumerate(made, prompt))


async def test_a_whole_request_gives_the_reference_tokens_and_its_length() -> None:
    async with on_stage() as stage:
        await stage.send("a", segment())
        await stage.until_ended(1)
        assert stage.tokens() == expected()
        assert stage.frames[-1].deltas[-1].finish_reason == "length"
        assert stage.free_blocks() == [64, 64]


@pytest.mark.parametrize("cut", [1, 15, 16, 17, 39, 40, 41, 45, 50])
async def test_a_cut_request_gives_the_same_tokens_as_an_uncut_one(cut: int) -> None:
    async with on_stage() as stage:
        await stage.send_cut(cut)
        await stage.until_ended(2)
        assert stage.tokens() == expected()
        await stage.until(lambda: "released" in stage.phases("alpha"))
        assert stage.phases("beta") == ["accepted", "held", "complete", "adopted"]
        assert stage.phases("alpha")[0] == "accepted"
        assert {"first_chunk", "sent_all"} < set(stage.phases("alpha"))
        assert stage.free_blocks() == [64, 64]
        assert not stage.failures


async def test_the_owner_of_each_position_is_the_one_the_cut_names() -> None:
    async with on_stage() as stage:
        await stage.send_cut(44)
        await stage.until_ended(2)
        by_instance: dict[str, list[int]] = {"a": [], "b": []}
        for frame in stage.frames:
            for delta in frame.deltas:
                by_instance[frame.instance_id] += range(
                    delta.position, delta.position + len(delta.token_ids)
                )
        assert by_instance == {"a": [40, 41, 42, 43, 44], "b": [45, 46, 47, 48, 49, 50, 51]}


async def test_many_cut_requests_at_once_share_few_blocks_and_stay_exact() -> None:
    async with on_stage() as stage:
        for number in range(20):
            await stage.send_cut(20 + number, f"r{number}", handoff_s=5.0)
        await stage.until_ended(40)
        for number in range(20):
            assert stage.tokens(f"r{number}") == expected(request_id=f"r{number}")
        await stage.until(lambda: stage.phases("alpha").count("released") == 20)
        assert stage.free_blocks() == [64, 64]


async def test_preempted_requests_compute_again_and_emit_nothing_twice() -> None:
    tight = SMALL.model_copy(update={"num_blocks": 12})
    async with on_stage(tight, ids=("a",)) as stage:
        for number in range(4):
            await stage.send("a", segment(f"r{number}", max_tokens=60))
        await stage.until_ended(4)
        for number in range(4):
            assert stage.tokens(f"r{number}") == expected(max_tokens=60, request_id=f"r{number}")
        assert max(d.num_preemptions for f in stage.frames for d in f.deltas) > 0
        assert stage.free_blocks() == [12]


async def test_a_stop_token_before_the_cut_ends_the_request_and_drops_beta() -> None:
    stop = expected()[43]
    async with on_stage() as stage:
        await stage.send_cut(48, sampling={"stop_token_ids": [stop]})
        await stage.until_ended(2)
        assert sorted(stage.tokens()) == [40, 41, 42, 43]
        assert stage.frames[-1].deltas[-1].finish_reason == "stop"
        assert stage.frames[-1].deltas[-1].stop_reason == stop
        await stage.until(lambda: "cancelled" in stage.phases("beta"))
        assert "ended" in stage.phases("alpha")
        assert stage.free_blocks() == [64, 64]
        assert not stage.failures


async def test_without_a_link_beta_recomputes_at_the_deadline_when_it_knows_the_tokens() -> None:
    async with on_stage() as stage:
        await stage.send("a", segment(role="alpha", cut=20, peer="b", handoff_s=0.1))
        await stage.send("b", segment(role="beta", cut=20, peer="a", handoff_s=0.1))
        await stage.until_ended(2)
        assert stage.tokens() == expected()
        assert "recomputed" in stage.phases("beta")


async def test_without_alpha_beta_fails_at_the_deadline_when_tokens_are_missing() -> None:
    async with on_stage() as stage:
        await stage.send("b", segment(role="beta", cut=45, peer="a", handoff_s=0.1))
        await stage.until_ended(1)
        assert [failure.code for failure in stage.failures] == ["handoff_lost"]
        assert "failed" in stage.phases("beta")
        assert stage.free_blocks() == [64, 64]


async def test_an_aborted_handoff_is_recomputed_by_beta_from_alphas_tokens() -> None:
    async with on_stage() as stage:
        abort = HandoffAbort(handoff_id="r.1", epoch=1, reason="test")
        await stage.send("a", segment(role="alpha", cut=45, peer="b"))
        await stage.until(lambda: 45 in stage.tokens())
        await stage.send("b", segment(role="beta", cut=45, peer="a"))
        await stage.bus.publish(SUBJECTS.control("a"), abort)
        await stage.bus.publish(SUBJECTS.control("b"), abort)
        await stage.until_ended(2)
        assert stage.tokens() == expected()
        assert "recomputed" in stage.phases("beta")
        await stage.until(lambda: "released" in stage.phases("alpha"))
        assert stage.free_blocks() == [64, 64]


@pytest.mark.parametrize("cut", [20, 45])
async def test_a_cancel_frees_both_sides_of_a_handoff(cut: int) -> None:
    slow = SMALL.model_copy(update={"speedup": 5.0})
    async with on_stage(slow) as stage:
        await stage.send_cut(cut, max_tokens=200)
        await stage.until(lambda: stage.phases("beta") != [])
        cancel = SegmentCancel(request_id="r", epoch=1)
        for instance_id in ("a", "b"):
            await stage.bus.publish(SUBJECTS.control(instance_id), cancel)
        await stage.until_ended(2)
        assert "cancelled" in stage.phases("beta")
        assert stage.free_blocks() == [64, 64]


async def test_a_prompt_longer_than_the_model_is_invalid() -> None:
    async with on_stage(ids=("a",)) as stage:
        await stage.send("a", segment(prompt=513))
        await stage.until_ended(1)
        assert stage.failures[0].code == "invalid"


async def test_a_resumed_request_goes_on_behind_the_tokens_the_client_has() -> None:
    known = list(expected().values())[:5]
    async with on_stage(ids=("a",)) as stage:
        await stage.send("a", segment(output=known))
        await stage.until_ended(1)
        assert stage.tokens() == {i: t for i, t in expected().items() if i >= 45}


async def test_decodes_that_are_all_past_their_slo_do_not_stop_the_prompts() -> None:
    late = SMALL.model_copy(update={"batcher": "slo", "speedup": 1.0, "num_blocks": 256})
    async with on_stage(late, ids=("a",)) as stage:
        first, second = segment("first", max_tokens=30), segment("second")
        hopeless = first.request.slo.model_copy(update={"tbt_s": 1e-6})
        request = first.request.model_copy(update={"slo": hopeless})
        await stage.send("a", first.model_copy(update={"request": request}))
        await stage.until(lambda: bool(stage.tokens("first")))
        await stage.send("a", second)
        await stage.until_ended(2)
        assert stage.tokens("second") == expected(request_id="second")


async def test_an_error_inside_the_engine_is_its_end() -> None:
    with pytest.raises(BaseExceptionGroup) as raised:
        async with on_stage(ids=("a",)) as stage:
            engine = stage.instances["a"].engine
            assert isinstance(engine, SimulatedEngine)
            engine.steps.compose = lambda now_s: 1 / 0  # type: ignore[method-assign,assignment,return-value]
            await stage.send("a", segment())
            await stage.until_ended(1)
            assert stage.failures[0].code == "engine_failed"
    assert raised.group_contains(EngineFailed)


async def test_telemetry_tells_how_fast_the_link_of_a_handoff_was() -> None:
    async with on_stage() as stage:
        loads: list[InstanceLoad] = []

        async def on_load(delivery: Delivery) -> None:
            loads.append(InstanceLoad.model_validate_json(delivery.data))

        await stage.bus.subscribe(SUBJECTS.telemetry("a"), on_load)
        await stage.send_cut(32)
        await stage.until_ended(2)
        async with asyncio.timeout(5):
            while not (loads and loads[-1].links):
                await asyncio.sleep(0.01)
        (link,) = loads[-1].links
        assert link.peer_id == "b"
        assert link.bytes_per_s == pytest.approx(SMALL.link_bytes_per_s)
