"""Words for cuts and for why they were made, from closed sets: they become label values. Pure."""

from typing import Literal

Region = Literal["none", "prompt", "boundary", "output"]

REASONS = {
    "forced by the request": "forced",
    "control group": "control_group",
    "guard": "guard",
    "cut is cheapest": "cheapest",
    "uncut is cheapest": "cheapest",
    "a cut would gain less": "below_error",
}
"""How a reason begins, and its code. What a policy says beyond these is ``policy``."""


def region(cut: int | None, num_prompt_tokens: int) -> Region:
    """Where a request is cut: inside its prompt, at its end, behind it, or nowhere."""
    if cut is None:
        return "none"
    if cut == num_prompt_tokens:
        return "boundary"
    return "prompt" if cut < num_prompt_tokens else "output"


def reason_code(reason: str) -> str:
    """The code of a plan's reason; 'obstacle' when a wanted cut could not be made."""
    if "; not cut:" in reason:
        return "obstacle"
    for beginning, code in REASONS.items():
        if reason.startswith(beginning):
            return code
    return "policy"
