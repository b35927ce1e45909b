"""The certification itself, on its quick grid."""

import pytest

from dynaserve.certify.client import PoolClient
from dynaserve.certify.groups import GROUPS
from dynaserve.certify.run import Certification, Options
from dynaserve.local_pool.background import BackgroundPool

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(400)]


async def test_every_way_of_sampling_survives_a_cut(engine_pool: BackgroundPool) -> None:
    async with PoolClient(engine_pool.url) as client:
        found = await Certification(client, Options(quick=True)).run()
    assert found.problems == []
    assert found.holds
    assert found.cases >= 30
    assert set(found.groups) >= set(GROUPS)
    assert found.noise_floor.mismatches == 0
    assert found.handoffs["adopted"] >= 20
