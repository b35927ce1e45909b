"""The load of a soak."""

from benchmarks.soak.load import make_load


def test_every_cut_is_possible_and_about_half_mean_to_leave() -> None:
    load = list(make_load(900, seed=1, vocabulary=range(50)))
    assert all(1 <= r.cut <= len(r.prompt) + r.max_tokens - 2 for r in load)
    leaving = [r for r in load if r.leave_after is not None]
    assert 400 <= len(leaving) <= 500
    assert 150 <= sum(r.leave_after == 0 for r in leaving) <= 300
    assert all(r.leave_after < r.max_tokens for r in leaving if r.leave_after is not None)


def test_the_same_seed_gives_the_same_load() -> None:
    assert list(make_load(9, 3, range(50))) == list(make_load(9, 3, range(50)))
    assert list(make_load(9, 3, range(50))) != list(make_load(9, 4, range(50)))
