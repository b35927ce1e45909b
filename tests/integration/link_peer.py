"""A KV port in a process of its own, driven by lines of JSON; run as a script by test_links.py.

Commands on stdin: {"do": "expect"|"offer"|"stage"|"checksum", ...}; answers on stdout: the address
first, then "ready", "arriving", "complete", "failed ..." as they happen.
"""

import json
import sys
import threading
from collections.abc import Callable

import torch

from services.kv_transfer.links import KvPort

NUM_LAYERS, NUM_BLOCKS = 4, 256


def make_layers(seed: int, block_bytes: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (NUM_BLOCKS, block_bytes)
    return [
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        for _ in range(NUM_LAYERS)
    ]


def say(line: str) -> None:
    print(line, flush=True)


def report(port: KvPort, news: threading.Event) -> None:
    while True:
        news.wait()
        news.clear()
        events = port.poll()
        for kind in ("ready", "arriving", "sent", "complete"):
            for _ in getattr(events, kind):
                say(kind)
        for failure in (*events.failed_outgoing, *events.failed_incoming):
            say(f"failed {failure.reason}")


def main(seed: int, block_bytes: int, transports: list[str], device: str) -> None:
    news = threading.Event()
    port = KvPort(
        [layer.to(device) for layer in make_layers(seed, block_bytes)],
        geometry="geometry",
        staging_bytes=NUM_LAYERS * block_bytes * 16,
        transports=transports,
        host_id="this host",
        wake=news.set,
    )
    threading.Thread(target=report, args=(port, news), daemon=True).start()
    say(port.address)
    calls: dict[str, Callable[..., object]] = {
        "expect": port.expect,
        "offer": port.offer,
        "stage": port.stage,
    }
    for line in sys.stdin:
        command = json.loads(line)
        calls[command.pop("do")](**command)


if __name__ == "__main__":
    where = sys.argv[4] if len(sys.argv) > 4 else "cpu"
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(","), where)
