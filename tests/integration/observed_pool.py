"""A pool of simulated instances behind a real gateway: cheap enough to be watched closely."""

from pathlib import Path

from dynaserve.local_pool import PoolSettings
from dynaserve.local_pool.background import BackgroundPool
from dynaserve.testing import free_port

NUM_INSTANCES = 2


def simulated_pool(log_folder: Path, name: str, nats_url: str | None = None) -> BackgroundPool:
    """Two simulated engines of a 14B model's speed; everything else is as in production."""
    return BackgroundPool(
        PoolSettings(
            engine="simulated",
            instances=NUM_INSTANCES,
            port=free_port(),
            pool=name,
            slo_ttft_ms=2000,
            log_folder=log_folder,
            nats=nats_url,
        )
    )


def ask(num_prompt: int, max_tokens: int, cut: int | str | None = None) -> dict[str, object]:
    """Body of a completion; ``cut`` insists on where it is cut."""
    body: dict[str, object] = {
        "model": "demo",
        "prompt": [300 + n % 50 for n in range(num_prompt)],
        "max_tokens": max_tokens,
        "ignore_eos": True,
    }
    if cut is not None:
        body["vllm_xargs"] = {"dynaserve_cut": cut}
    return body
