"""The Markdown table of a comparison."""

from benchmarks.compare_cpu.table import markdown

ROW = {"attainment": 0.5, "goodput_rps": 2.0, "ttft_p50_ms": 40.0, "ttft_p99_ms": 90.4} | {
    "tbt_p99_ms": 61.0,
    "lost": 1.0,
}
BODY = {
    "command": "python -m x",
    "host_cpu": "a CPU",
    "host_cores": 2,
    "load_average": (3.0, 2.0, 1.0),
    "git_commit": "abc",
    "settings": {"slo_tbt_ms": 60.0, "slo_ttft_ms": 1000.0, "slo_ttft_ms_per_token": 1.0}
    | {"request_rate": 5.0, "duration_s": 15.0, "repeats": 1},
    "loads": {
        "conv": {
            "systems": [
                {"system": "a/slo", "values": ROW, "ratios": {"attainment": {"mean": 1.0}}},
                {"system": "b/slo", "values": ROW, "ratios": {"attainment": {"mean": 0.8}}},
            ],
            "runs": [{"distrust": []}, {"distrust": ["the client used 99% of its core"]}],
        }
    },
}


def test_one_line_a_system_with_its_ratio_to_the_first() -> None:
    lines = markdown(BODY).splitlines()
    assert "| `a/slo` | 0.50 (1.00x) | 2.00 | 40 | 90 | 61 | 1 |" in lines
    assert "| `b/slo` | 0.50 (0.80x) | 2.00 | 40 | 90 | 61 | 1 |" in lines


def test_who_else_was_busy_and_what_the_client_does_not_vouch_for_is_said() -> None:
    text = markdown(BODY)
    assert "load average at the end 3.0, 2.0, 1.0" in text
    assert "The client vouches for 1 of 2 runs." in text
