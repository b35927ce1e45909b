import pytest

from dynaserve.certify.client import lacking

ONE = {"geometry": {"block_size": 32}, "state": "ready"}
OTHER = {"geometry": {"block_size": 64}, "state": "ready"}
DRAINING = {**ONE, "state": "draining"}
GOOD: dict[str, object] = {"problem": None, "instances": [OTHER, ONE, ONE], "coordinators": [{}]}


def test_a_pool_with_two_equal_instances_and_a_coordinator_can_cut() -> None:
    assert lacking(GOOD) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"problem": "no scheduler"}, "no scheduler"),
        ({"instances": [ONE]}, "no two ready instances"),
        ({"instances": [ONE, OTHER]}, "no two ready instances"),
        ({"instances": [ONE, DRAINING]}, "no two ready instances"),
        ({"coordinators": []}, "no KV-transfer service"),
    ],
)
def test_what_is_lacking_is_named(change: dict[str, object], reason: str) -> None:
    assert reason in (lacking({**GOOD, **change}) or "")
