"""Fit the shipped latency profile from a CSV of measured engine steps.

Columns: n_decode, context_sum, n_prefill, prefill_x_context, step_s. The shipped profile comes
from `h200_qwen14b_steps.csv` (455 steps timed on one NVIDIA H200):

    python benchmarks/profiles/make_shipped_profile.py STEPS.csv shared/profiles/h200_qwen14b.json
"""

import csv
import sys
from pathlib import Path

from shared.latency_model import LatencyProfile, StepShape, fit


def main(steps_csv: Path, out: Path) -> None:
    shapes: list[StepShape] = []
    step_ms: list[float] = []
    with steps_csv.open() as lines:
        for row in csv.DictReader(lines):
            shapes.append(
                StepShape(
                    int(row["n_decode"]),
                    int(row["context_sum"]),
                    int(row["n_prefill"]),
                    float(row["prefill_x_context"]),
                )
            )
            step_ms.append(1e3 * float(row["step_s"]))
    model, error = fit(shapes, step_ms)
    profile = LatencyProfile(
        model=model,
        error=error,
        num_steps=len(shapes),
        hardware="1x NVIDIA H200",
        model_name="Qwen2.5-14B shape, bf16, random weights",
        versions={"vllm": "0.32.0"},
        source=f"{steps_csv.name}: torch.compile and CUDA graphs, synchronous scheduling",
    )
    out.write_text(profile.to_json())
    print(profile.to_json())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
