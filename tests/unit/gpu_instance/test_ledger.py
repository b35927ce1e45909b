"""Fencing by epoch: whatever the order, only the highest epoch may run."""

from hypothesis import given
from hypothesis import strategies as st

from services.gpu_instance.ledger import SegmentLedger
from tests.unit.gpu_instance.stage import segment

ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["segment", "cancel", "end"]), st.sampled_from("xy"), st.integers(1, 4)
    ),
    max_size=30,
)


@given(ACTIONS)
def test_at_most_the_highest_uncancelled_epoch_of_a_request_is_alive(
    actions: list[tuple[str, str, int]],
) -> None:
    ledger = SegmentLedger()
    cancelled = {"x": 0, "y": 0}
    started: dict[str, list[int]] = {"x": [], "y": []}
    for action, request_id, epoch in actions:
        if action == "cancel":
            ledger.cancel(request_id, epoch)
            cancelled[request_id] = max(cancelled[request_id], epoch)
        elif action == "end" and (request_id, epoch) in ledger.alive:
            ledger.end((request_id, epoch))
        elif action == "segment":
            candidate = segment(request_id, epoch=epoch)
            if ledger.judge(candidate) == "new":
                older = ledger.older_than(candidate)
                if older is not None:
                    ledger.cancel(*older.key)
                ledger.admit(candidate, 0.0)
                started[request_id].append(epoch)
        for name in "xy":
            alive = [key[1] for key in ledger.alive if key[0] == name]
            assert len(alive) <= 1
            assert all(epoch > cancelled[name] for epoch in alive)
            assert started[name] == sorted(set(started[name]))


def test_the_fence_of_a_live_segment_is_never_forgotten() -> None:
    ledger = SegmentLedger(max_remembered=2)
    ledger.admit(segment("old"), 0.0)
    for number in range(5):
        ledger.cancel(f"n{number}", 1)
    assert ledger.judge(segment("old")) == "duplicate"
    assert ledger.judge(segment("n4")) == "stale"
    assert ledger.judge(segment("n0")) == "new"
