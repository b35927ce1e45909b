"""A whole pool on one machine: what ``dynaserve up``, the tests and the benchmarks start."""

from dynaserve.local_pool.pool import LocalPool
from dynaserve.local_pool.settings import PoolSettings

__all__ = ["LocalPool", "PoolSettings"]
