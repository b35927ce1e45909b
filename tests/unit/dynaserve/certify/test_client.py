import pytest

from dynaserve.certify.client import common_transports, lacking
from tests.unit.gateway.fake_pool import instance_record

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


def test_the_transports_to_certify_are_those_that_join_every_two_instances() -> None:
    both = instance_record("a").model_copy(
        update={"transports": ["nccl", "shm", "tcp"], "host_id": "h", "device": "GPU 0"}
    )
    other = both.model_copy(update={"instance_id": "b", "device": "GPU 1"})
    far = other.model_copy(update={"instance_id": "c", "host_id": "elsewhere"})
    assert common_transports([both, other]) == ("nccl", "shm", "tcp")
    assert common_transports([both, other, far]) == ("nccl", "tcp")
    assert common_transports([both, far.model_copy(update={"transports": ["tcp"]})]) == ("tcp",)
