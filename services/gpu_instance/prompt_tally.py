"""What waits to be computed on an instance, as a load report tells it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from services.gpu_instance.batcher import PromptSpeed, PromptView, is_lost


@dataclass(slots=True)
class PromptTally:
    """Sums over the prompts that are not computed yet. Tokens; times on the engine's clock."""

    now_s: float
    speed: PromptSpeed
    """By which a prompt is judged late."""
    outstanding: int = 0
    late: int = 0
    """Part of the outstanding: prompts that miss their deadline, and so yield to all others."""
    inbound: int = 0
    """To compute once their KV has come, the late ones left out."""
    num_pending: int = 0
    """Requests that will decode here and can still be in time."""
    pending_context: int = 0

    def add(
        self, prompt: PromptView, num_tokens: int, *, waits_for_kv: bool, will_decode: bool
    ) -> None:
        """``num_tokens``: all positions known, of which ``prompt.remaining_tokens`` are to do."""
        late = is_lost(prompt, self.now_s, self.speed)
        if waits_for_kv:
            self.inbound += 0 if late else prompt.remaining_tokens
        else:
            self.outstanding += prompt.remaining_tokens
            self.late += prompt.remaining_tokens if late else 0
        if will_decode and not late:
            self.num_pending += 1
            self.pending_context += num_tokens
