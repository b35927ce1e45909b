"""Split policies by name. A policy is one class with one method, ``place``."""

from collections.abc import Callable

from services.global_sched.policy.baselines import Colocated, Disaggregated, RoundRobin
from services.global_sched.policy.views import SplitPolicy

POLICIES: dict[str, Callable[[], SplitPolicy]] = {
    "colocated": Colocated,
    "disaggregated": Disaggregated,
    "round_robin": RoundRobin,
}
