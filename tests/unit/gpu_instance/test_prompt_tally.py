"""What a load report tells of the prompts that wait."""

from services.gpu_instance.batcher import PromptSpeed, PromptView
from services.gpu_instance.prompt_tally import PromptTally

NOW_S, IN_TIME_S, PAST_S = 10.0, 20.0, 5.0


def tally() -> PromptTally:
    return PromptTally(NOW_S, PromptSpeed(1000.0))


def test_prompts_count_with_what_is_left_of_them_and_will_decode() -> None:
    prompts = tally()
    prompts.add(PromptView(9.0, IN_TIME_S, 300), 800, waits_for_kv=False, will_decode=True)
    assert (prompts.outstanding, prompts.late, prompts.inbound) == (300, 0, 0)
    assert (prompts.num_pending, prompts.pending_context) == (1, 800)


def test_who_misses_the_deadline_is_counted_as_late_and_not_as_pending() -> None:
    prompts = tally()
    prompts.add(PromptView(1.0, PAST_S, 300), 800, waits_for_kv=False, will_decode=True)
    prompts.add(PromptView(1.0, NOW_S + 0.2, 300), 800, waits_for_kv=True, will_decode=True)
    assert (prompts.outstanding, prompts.late, prompts.inbound) == (300, 300, 0)
    assert prompts.num_pending == 0


def test_what_waits_for_kv_is_inbound_and_an_alpha_does_not_decode() -> None:
    prompts = tally()
    prompts.add(PromptView(9.0, IN_TIME_S, 40), 800, waits_for_kv=True, will_decode=True)
    prompts.add(PromptView(9.0, IN_TIME_S, 500), 500, waits_for_kv=False, will_decode=False)
    assert (prompts.outstanding, prompts.inbound) == (500, 40)
    assert (prompts.num_pending, prompts.pending_context) == (1, 800)
