"""The same question gets the same answer; an older epoch gets none; the memory is bounded."""

from hypothesis import given
from hypothesis import strategies as st

from services.global_sched.memory import AnswerMemory
from shared.bus import encode
from shared.schemas.place import PlaceRefused


def answer(request_id: str, epoch: int, message: str = "m") -> PlaceRefused:
    return PlaceRefused(request_id=request_id, epoch=epoch, code="no_instance", message=message)


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.integers(1, 5)), max_size=40))
def test_every_epoch_is_answered_once_and_never_after_a_later_one(
    asked: list[tuple[str, int]],
) -> None:
    memory = AnswerMemory(10)
    highest: dict[str, int] = {}
    for request_id, epoch in asked:
        known = memory.recall(request_id, epoch)
        if epoch > highest.get(request_id, 0):
            assert known == "new"
            memory.remember(answer(request_id, epoch))
            highest[request_id] = epoch
        elif epoch == highest[request_id]:
            assert known == encode(answer(request_id, epoch))
        else:
            assert known == "stale"


def test_the_oldest_answers_are_forgotten_beyond_the_bound() -> None:
    memory = AnswerMemory(2)
    for name in "abc":
        memory.remember(answer(name, 1))
    assert memory.recall("a", 1) == "new"
    assert memory.recall("c", 1) == encode(answer("c", 1))
    memory.forget("c")
    assert memory.recall("c", 1) == "new"
