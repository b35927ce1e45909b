from dynaserve.certify.report import problem_lines, verdict
from dynaserve.certify.tally import Certificate, NoiseFloor, Result, certificate
from tests.unit.dynaserve.certify.samples import case

VERSIONS = {"model": "m", "dtype": "float32", "vllm": "1", "instances": "2", "device": "cpu"}
GOOD = [Result(case(n), handoff="adopted", max_logprob_difference=n * 1e-7) for n in range(8)]


def made(results: list[Result]) -> Certificate:
    return certificate(results, NoiseFloor(reruns=3), 1e-3, 12.0, VERSIONS)


def test_equal_cases_make_a_certificate_that_holds() -> None:
    found = made(GOOD)
    assert (found.cases, found.mismatches, found.void) == (8, 0, 0)
    assert found.holds
    assert found.max_logprob_difference == 7e-7
    assert {name: c.cases for name, c in found.transports.items()} == {"shm": 4, "tcp": 4}
    assert {name: c.cases for name, c in found.modes.items()} == {"sequential": 4, "concurrent": 4}
    assert {name: c.cases for name, c in found.caching.items()} == {"off": 4, "on": 4}
    assert found.handoffs == {"adopted": 8}
    assert Certificate.model_validate_json(found.model_dump_json()) == found


def test_one_difference_ends_it_and_is_told_so_that_it_can_be_repeated() -> None:
    found = made([*GOOD, Result(case(8, cut=41), difference="token 3 is 5, not 6")])
    assert not found.holds
    assert (found.cases, found.mismatches) == (9, 1)
    assert found.groups["greedy"].mismatches == 1
    (line,) = problem_lines(found)
    assert "P=40, max_tokens=10, cut=41, shm, caching off, sequential" in line
    assert "token 3 is 5, not 6" in line


def test_a_run_that_was_not_cut_is_no_case_and_the_certificate_does_not_hold() -> None:
    found = made([*GOOD, Result(case(8), void="it was cut at None, not 40")])
    assert (found.cases, found.void, found.mismatches) == (8, 1, 0)
    assert not found.holds
    assert "1 that do not count" in verdict(found)


def test_without_a_case_nothing_is_certified() -> None:
    assert not made([]).holds


def test_only_the_first_problems_are_shown() -> None:
    found = made([Result(case(n), void="x") for n in range(12)])
    lines = list(problem_lines(found))
    assert len(lines) == 11
    assert lines[-1].startswith("and 2 more")
