"""How many tokens each piece of a completion stream brings, read without parsing its JSON."""

import json
from dataclasses import dataclass

MARK = b'"completion_tokens":'
DATA = b"data:"


@dataclass(frozen=True, slots=True)
class Usage:
    """The server's own account at the end of a stream."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None


class CompletionStream:
    """Feed it what the socket brings; it says how many tokens that was.

    A server that sends usage with every chunk (vLLM's ``continuous_usage_stats``) is counted
    exactly, several tokens a chunk included. Without that, a chunk with text counts as one token.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.ended = False
        self.error: str | None = None
        self.usage: Usage | None = None
        self.continuous = False
        self._rest = b""

    @property
    def exact(self) -> bool:
        """The tokens counted chunk by chunk are those the server says it made."""
        return self.usage is not None and self.usage.completion_tokens == self.tokens

    def feed(self, data: bytes) -> int:
        """Tokens that became complete with ``data``."""
        before = self.tokens
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(DATA):
                self._event(line[len(DATA) :].strip())
        return self.tokens - before

    def _event(self, event: bytes) -> None:
        if event == b"[DONE]":
            self.ended = True
            return
        at = event.rfind(MARK)
        if b'"choices":[]' in event or b'"choices": []' in event:
            self._final_usage(event)
        elif at >= 0:
            self.continuous = True
            self.tokens = max(self.tokens, _number(event, at + len(MARK)))
        elif event.startswith(b'{"error"'):
            self.error = event.decode(errors="replace")
        elif b'"choices"' in event and not (b'"text":""' in event or b'"text": ""' in event):
            self.tokens += 1

    def _final_usage(self, event: bytes) -> None:
        usage = json.loads(event).get("usage")
        if usage is None:
            return
        details = usage.get("prompt_tokens_details") or {}
        self.usage = Usage(
            usage["prompt_tokens"], usage["completion_tokens"], details.get("cached_tokens")
        )


def _number(text: bytes, start: int) -> int:
    """The integer that begins at ``start``, spaces skipped."""
    while text[start : start + 1] == b" ":
        start += 1
    end = start
    while text[end : end + 1].isdigit():
        end += 1
    return int(text[start:end] or b"0")
