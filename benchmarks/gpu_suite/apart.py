"""Steps with servers of their own: certify on a small model, and overhead against plain vLLM."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.overhead.servers import ServerArgs, ServerSpec, serving
from dynaserve.demo_model import demo_model

SMALL_ENGINES = "--max-model-len=2048 --block-size=32 --max-num-batched-tokens=64"
ON_GPU = "--gpu-memory-utilization=0.05 --kv-cache-memory-bytes=2147483648"
SMALL_POOL = (
    "{python} -m dynaserve up {model} --port {port} --instances 2 --policy round_robin "
    "--served-model-name=demo --log-folder {pool_args} {engine_args}"
)
OVERHEAD_FLAGS = (
    "--load-format=dummy --skip-tokenizer-init --max-model-len=32768 --max-num-seqs=256 "
    "--max-num-batched-tokens=8192 --gpu-memory-utilization=0.4 "
    "--kv-cache-memory-bytes=17179869184"
)
"""Both engines sit on one GPU: one has load, the other waits."""

CERTIFY: dict[str, tuple[str, Mapping[str, str]]] = {
    # Triton's dot products round float32 inputs to TF32 unless told otherwise.
    "certify": ("--dtype=float32 --enforce-eager", {"TRITON_F32_DEFAULT": "ieee"}),
    "certify-bf16": ("--dtype=bfloat16", {"VLLM_BATCH_INVARIANT": "1"}),
}
"""Step -> engine flags and environment. Without batch invariance bf16 depends on the company."""


async def command(*arguments: str, timeout_s: float, log: Path, may_fail: bool = False) -> int:
    """One command of ours, its output in a file. Raises TimeoutError or RuntimeError."""
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *arguments, stdout=sink, stderr=sink
        )
        try:
            async with asyncio.timeout(timeout_s):
                status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if status != 0 and not may_fail:
        tail = log.read_text(errors="replace").splitlines()[-6:]
        raise RuntimeError(f"{arguments[0]} ended with status {status}: {tail}")
    return status


async def certify(step: str, out: Path, cpu: bool, timeout_s: float) -> dict[str, object]:
    """Exactness of cuts on this host, on the demo model, over every transport there is."""
    flags, environment = CERTIFY[step]
    args = ServerArgs(
        demo_model(),
        f"{flags} {SMALL_ENGINES} {'' if cpu else ON_GPU}",
        pool_args=f"{out / step} --pool {step}",
    )
    spec = ServerSpec(step, SMALL_POOL, environment)
    target = out / f"{step}.json"
    target.unlink(missing_ok=True)
    async with (
        asyncio.timeout(timeout_s),
        serving(spec, args, out / f"{step}-pool.log", timeout_s) as url,
    ):
        await command(
            *("dynaserve", "certify", "--url", url, "--json", str(target)),
            timeout_s=timeout_s, log=out / f"{step}.log", may_fail=True,
        )  # fmt: skip
    body = json.loads(target.read_text())
    return {key: body[key] for key in ("cases", "mismatches")}


async def overhead(model: str, out: Path, cpu: bool, rounds: int, timeout_s: float) -> str:
    """One instance behind gateway, scheduler and bus against plain `vllm serve`."""
    arguments = ["--json", str(out / "overhead.json"), "--logs", str(out), "--together"]
    arguments += ["--rounds", str(rounds)]
    if not cpu:
        arguments += [
            *("--model", model, f"--engine-args={OVERHEAD_FLAGS}", "--plain-args="),
            *("--pool-args=--batcher static:8192", "--env", "NCCL_NVLS_ENABLE=0"),
            *("--prompt-tokens", "2048", "--output-tokens", "64", "--ready-s", "240"),
            *("--requests", "16", "32", "64"),
        ]
    log = out / "overhead.log"
    await command("benchmarks.overhead", *arguments, timeout_s=timeout_s, log=log)
    return log.read_text(errors="replace")[-1500:]
