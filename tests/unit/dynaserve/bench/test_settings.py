from pathlib import Path

import pytest

from dynaserve.bench.settings import check, read_settings
from shared.errors import InvalidRequest

TRACE = ("--trace", "synthetic:20:5")


def test_flags_may_hold_several_values() -> None:
    settings = read_settings(
        [*TRACE, "--compare", "dynaserve/slo,colocated/slo", "--slo-tbt-ms", "100,code=50"]
    )

    assert [system.name for system in settings.systems] == ["dynaserve/slo", "colocated/slo"]
    assert settings.slos.of("code").tbt_s == 0.05


def test_the_flag_for_figures_is_json() -> None:
    assert read_settings([*TRACE, "--json", "x.json"]).json_file == Path("x.json")


def test_a_wrong_value_names_its_flag() -> None:
    with pytest.raises(InvalidRequest, match="--request-rate"):
        read_settings([*TRACE, "--request-rate", "-1"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--request-rate", "1", "--compare", "dynaserve/slo"], "--nats"),
        (["--ramp", "--slo-tbt-ms", "100"], "rate"),
        (["--request-rate", "1", "--ramp"], "objective"),
        (["--request-rate", "1", "--ramp-growth", "2"], "no effect"),
        (["--request-rate", "1", "--window-s", "2"], "several traces"),
        (["--request-rate", "1", "--num-shared-prefixes", "2"], "no effect"),
        ([], "rate"),
    ],
)
def test_contradictions_and_options_without_effect_are_refused(
    arguments: list[str], said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said):
        check(read_settings([*TRACE, *arguments]))
