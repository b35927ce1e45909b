"""The waterfall of a request as lines of a terminal. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from shared.explanation import Span
from shared.explanation.model import SpanKind
from shared.explanation.wording import say_s

MIN_BAR = 20


@dataclass(frozen=True, slots=True)
class Look:
    """How a kind of time is drawn; never by colour alone."""

    name: str
    mark: str
    style: str


LOOKS: dict[SpanKind, Look] = {
    "place": Look("placement", "█", "bright_black"),
    "bus": Look("on the bus", "▪", "bright_black"),
    "queue": Look("queue", "▒", "yellow"),
    "prefill": Look("prompt", "█", "magenta"),
    "decode": Look("decoding", "█", "cyan"),
    "held": Look("waits for alpha", "·", "bright_black"),
    "transfer_hidden": Look("transfer, hidden", "░", "green"),
    "transfer_exposed": Look("transfer, exposed", "▓", "bold red"),
    "lost": Look("lost work", "x", "red"),
}


def waterfall(spans: Sequence[Span], ttft_s: float | None, width: int) -> list[Text]:
    """One line a span: who, a bar on a common axis, how long; then where the first token was."""
    if not spans:
        return [Text("No part of it told when it ran.", style="dim")]
    labels = [_label(span) for span in spans]
    left = max(map(len, labels)) + 1
    bar = max(MIN_BAR, width - left - 9)
    end_s = max(max(span.end_s for span in spans), ttft_s or 0.0)
    lines = [
        Text(f"{label:<{left}}")
        .append(_bar(span, end_s, bar), LOOKS[span.kind].style)
        .append(f"{say_s(span.duration_s):>9}")
        for label, span in zip(labels, spans, strict=True)
    ]
    if ttft_s is not None:
        lines.append(_pointer(ttft_s, end_s, left, bar))
    return lines


def _label(span: Span) -> str:
    who = f" {span.instance_id}" if span.instance_id and span.lane != "gateway" else ""
    epoch = f" #{span.epoch}" if span.epoch > 1 else ""
    lane = "" if span.lane in ("gateway", "whole", "transfer") else f"{span.lane} "
    return f"{lane}{LOOKS[span.kind].name}{who}{epoch}"


def _bar(span: Span, end_s: float, width: int) -> str:
    first = min(width - 1, int(width * span.start_s / end_s))
    last = min(width, max(first + 1, round(width * span.end_s / end_s)))
    return " " * first + LOOKS[span.kind].mark * (last - first) + " " * (width - last)


def _pointer(ttft_s: float, end_s: float, left: int, width: int) -> Text:
    at = min(width - 1, int(width * ttft_s / end_s))
    said = f"first token {say_s(ttft_s)}"
    line = " " * (left + at) + f"↑ {said}"
    if at + len(said) + 2 > width:
        line = " " * max(0, left + at - len(said) - 1) + f"{said} ↑"
    return Text(line, style="bold")
