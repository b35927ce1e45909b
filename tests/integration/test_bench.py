"""``dynaserve bench`` over a real socket, against delays that are known beforehand."""

import json
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest
from rich.console import Console

from dynaserve.bench.progress import Board
from dynaserve.bench.provenance import provenance
from dynaserve.bench.report import report, to_json
from dynaserve.bench.run import BenchResult, bench
from dynaserve.bench.settings import read_settings
from shared.errors import DynaServeError
from tests.integration.fake_openai import FakeServer

# A loaded host wakes timers late, never early.
EARLY_MS = 4.0
LATE_MS = 60.0
ATTEMPTS = 6


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "made.csv"
    rows = "".join(f"{0.05 * number},{20 + number},5\n" for number in range(20))
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    return str(path)


async def run(server: FakeServer, *arguments: str) -> BenchResult:
    settings = read_settings(
        ["--url", server.url, "--num-warmups", "0", "--settle-s", "0", *arguments]
    )
    return await bench(settings, Board(Console(quiet=True)))


async def vouched_run(fake: FakeServer, *arguments: str) -> BenchResult:
    """Figures that the client itself vouches for; on a busy host it takes some runs."""
    for _attempt in range(ATTEMPTS):
        async with fake.running() as server:
            result = await run(server, *arguments)
        if not result.results[0].at.distrust:
            break
    return result


def allowed_ms(result: BenchResult) -> float:
    """How late a figure may be: more than that only by what the client itself says it was late."""
    at = result.results[0].at
    told_ms = at.client.late_max_ms + at.client.loop_lag_max_ms
    return LATE_MS + told_ms if at.distrust else LATE_MS


async def test_measures_the_times_the_server_really_took(trace: str) -> None:
    server = FakeServer(ttft_s=0.05, gap_s=0.02)
    result = await vouched_run(server, "--trace", trace, "--duration-s", "1", "--slo-tbt-ms", "500")

    found = result.results[0].at.figures
    assert found["completed"] == found["requests"] == 20
    assert found["inexact"] == 0
    # Against what the server did, which on a busy host is later than it was told.
    times = list(server.times_s.values())[-20:]
    ttft_ms = median(1e3 * (first - came) for came, first, *_ in times)
    gap_ms = median(
        1e3 * (after - before) for each in times for before, after in pairwise(each[1:])
    )
    e2el_ms = median(1e3 * (each[-1] - each[0]) for each in times)
    assert ttft_ms >= 50.0 - EARLY_MS and gap_ms >= 20.0 - EARLY_MS
    for value, true_ms in (
        (found["times"]["median_ttft_ms"], ttft_ms),
        (found["times"]["median_tpot_ms"], gap_ms),
        (found["times"]["median_itl_ms"], gap_ms),
        (found["tbt_p50_ms"], gap_ms),
        (found["times"]["median_e2el_ms"], e2el_ms),
    ):
        assert true_ms - EARLY_MS <= value <= true_ms + allowed_ms(result)
    assert found["output_tokens"] == 100
    assert found["attainment"] == 1.0


async def test_sends_prompts_of_exact_length_and_the_objectives(trace: str) -> None:
    async with FakeServer().running() as server:
        await run(
            server, "--trace", trace, "--duration-s", "1", "--slo-tbt-ms", "100",
            "--slo-ttft-ms", "1000", "--slo-ttft-ms-per-token", "2",
        )  # fmt: skip

    lengths = [len(body["prompt"]) for body in server.bodies]  # type: ignore[arg-type]
    assert sorted(lengths) == list(range(20, 40))
    assert all(body["ignore_eos"] and body["max_tokens"] == 5 for body in server.bodies)
    assert len({tuple(body["prompt"][:8]) for body in server.bodies}) == 20  # type: ignore[index,arg-type]
    first = lengths.index(20)
    assert server.headers[first]["x-slo-ttft-ms"] == "1040.000"
    assert server.headers[first]["x-slo-tpot-ms"] == "100.000"
    assert server.headers[first]["x-slo-class"] == "made"
    assert len({headers["x-request-id"] for headers in server.headers}) == 20


async def test_one_long_gap_is_a_missed_objective(trace: str) -> None:
    stalled = frozenset({3, 4, 5, 6, 7})
    async with FakeServer(ttft_s=0.01, stall=stalled, stall_s=0.4).running() as server:
        result = await run(server, "--trace", trace, "--duration-s", "1", "--slo-tbt-ms", "250")

    found = result.results[0].at.figures
    assert found["attainment"] == pytest.approx(15 / 20)
    assert found["tbt_attainment"] == pytest.approx(15 / 20)
    assert found["ttft_attainment"] == 1.0
    assert found["goodput_rps"] == pytest.approx(15.0)
    assert found["goodput_output_tokens_s"] == pytest.approx(75.0)


async def test_refusals_and_broken_streams_are_misses(trace: str) -> None:
    async with FakeServer(refuse=frozenset({0, 9}), break_off=frozenset({5})).running() as server:
        result = await run(server, "--trace", trace, "--duration-s", "1", "--slo-tbt-ms", "500")

    found = result.results[0].at.figures
    assert (found["completed"], found["refused"], found["failed"]) == (17, 2, 1)
    assert found["attainment"] == pytest.approx(17 / 20)
    assert found["mean_retry_after_s"] == 3.0
    assert sum(found["failures"].values()) == 1


async def test_several_tokens_a_chunk_are_counted_one_by_one(trace: str) -> None:
    server = FakeServer(tokens_per_chunk=3, gap_s=0.04)
    result = await vouched_run(server, "--trace", trace, "--duration-s", "1")

    found = result.results[0].at.figures
    assert found["output_tokens"] == 100
    assert found["tokens_per_chunk"] == pytest.approx(2.5)
    # 5 tokens in 2 chunks, 40 ms apart: 4 gaps of which 3 are none.
    assert 40.0 - EARLY_MS <= found["times"]["median_itl_ms"] <= 40.0 + allowed_ms(result)
    assert found["tbt_p50_ms"] == 0.0
    assert 10.0 - EARLY_MS <= found["times"]["median_tpot_ms"] <= 10.0 + allowed_ms(result) / 4


async def test_a_server_without_token_counts_is_said_to_be_inexact(trace: str) -> None:
    async with FakeServer(usage=False).running() as server:
        result = await run(server, "--trace", trace, "--duration-s", "1")

    assert result.results[0].at.figures["inexact"] == 20


async def test_waiting_for_a_slot_counts_into_the_time_to_first_token(trace: str) -> None:
    async with FakeServer(ttft_s=0.1, gap_s=0.02).running() as server:
        result = await run(
            server, "--trace", trace, "--duration-s", "1", "--max-concurrency", "1",
        )  # fmt: skip

    at = result.results[0].at
    # One request takes 180 ms, one is due every 50 ms: the last waits for all before it.
    assert at.observations[-1].ttft_s >= 19 * 0.18 - 19 * 0.05
    assert at.client.late_max_ms > 2000.0
    assert not any("sent" in reason for reason in at.distrust)


async def test_long_requests_are_cut_to_the_model_and_said_so(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,600,5\n0.1,10,2\n0.2,10,2\n")
    async with FakeServer().running() as server:
        result = await run(server, "--trace", str(path), "--duration-s", "0.3")

    schedule = result.results[0].at.schedule
    assert (schedule.capped_requests, schedule.capped_tokens) == (1, 600 + 5 - 512)
    assert max(len(body["prompt"]) for body in server.bodies) == 510  # type: ignore[arg-type]


async def test_the_ramp_finds_the_capacity_of_the_server(tmp_path: Path) -> None:
    path = tmp_path / "alike.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + ",10,5\n" * 10)
    # 2 slots, 0.1 s a request: 20 requests/s, and beyond that a queue that grows.
    async with FakeServer(ttft_s=0.02, gap_s=0.02, slots=2).running() as server:
        result = await run(
            server, "--trace", str(path), "--ramp", "--request-rate", "4", "--ramp-growth", "2",
            "--ramp-precision", "0.3", "--slo-ttft-ms", "500", "--duration-s", "3",
        )  # fmt: skip

    ramp = result.results[0]
    assert ramp.capacity_rps is not None
    busy = any(run.distrust for run in ramp.runs)  # the server is in the same process
    assert (0.0 if busy else 2.5) < ramp.capacity_rps < 27.0
    assert max(run.rate_rps or 0.0 for run in ramp.runs) > ramp.capacity_rps
    assert ramp.at.figures["attainment"] >= 0.9


async def test_the_report_reads_and_its_json_holds_the_figures(trace: str, tmp_path: Path) -> None:
    from dynaserve.bench.plot import plot

    async with FakeServer(ttft_s=0.01).running() as server:
        result = await run(
            server, "--trace", trace, "--duration-s", "1", "--slo-tbt-ms", "500",
            "--repeats", "2", "--save-detailed", "--device", "a fake",
        )  # fmt: skip
    document = json.loads(to_json(result, provenance(["dynaserve", "bench"], "9.9", {"fake": 1})))
    plot(result, tmp_path / "plot.png")
    console = Console(record=True, width=200)
    for part in report(result):
        console.print(part)

    assert document["command"] == "dynaserve bench"
    assert document["endpoint"]["server_version"] == "9.9"
    assert len(document["results"]) == 2
    assert len(document["results"][0]["runs"][0]["requests"]) == 20
    assert document["systems"][0]["ratios"]["goodput_rps"]["mean"] == 1.0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "1.00x" in console.export_text()


async def test_nobody_there_is_one_clear_error(trace: str) -> None:
    with pytest.raises(DynaServeError, match="no OpenAI endpoint at"):
        await bench(
            read_settings(["--url", "http://127.0.0.1:9", "--trace", trace]),
            Board(Console(quiet=True)),
        )


async def test_several_client_processes_keep_one_schedule_and_stop_together(trace: str) -> None:
    async with FakeServer(ttft_s=0.05).running() as server:
        whole = await run(
            server, "--trace", trace, "--duration-s", "1", "--client-processes", "2",
            "--slo-ttft-ms", "1000",
        )  # fmt: skip
        stopped = await run(
            server, "--trace", trace, "--ramp", "--request-rate", "20", "--duration-s", "10",
            "--client-processes", "2", "--slo-ttft-ms", "20", "--ramp-growth", "100",
        )  # fmt: skip

    found = whole.results[0].at
    assert found.figures["completed"] == 20
    assert [seen.request.arrival_s for seen in found.observations] == sorted(
        seen.request.arrival_s for seen in found.observations
    )
    assert all(run.cut_short for run in stopped.results[0].runs)
    assert stopped.results[0].capacity_rps == 0.0
    assert stopped.results[0].runs[0].figures["unfinished"] > 0
