"""Split policies by name. A policy is one class with one method, ``place``."""

from collections.abc import Callable

from services.global_sched.policy.baselines import Colocated, Disaggregated, RoundRobin
from services.global_sched.policy.dynaserve import DynaServe
from services.global_sched.policy.views import SplitPolicy

POLICIES: dict[str, Callable[[], SplitPolicy]] = {
    "colocated": Colocated,
    "disaggregated": Disaggregated,
    "dynaserve": DynaServe,
    "round_robin": RoundRobin,
}
