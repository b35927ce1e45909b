"""Puts a request's tokens back in order, whichever instance they come from. Pure."""

from shared.schemas.tokens import TokenDelta, TokenLogprobs

MAX_BUFFERED_TOKENS = 4096


class GapTooLarge(Exception):
    """More tokens wait behind a gap than can be a matter of ordering."""


class TokenStream:
    """The output of one request, delivered exactly once and in order.

    Invariant: ``token_ids`` are the tokens of positions ``num_prompt_tokens`` up to ``position``;
    each was handed out by ``accept`` exactly once. Deltas of another epoch are refused, positions
    already delivered are trimmed, positions ahead wait until the gap before them closes.
    """

    def __init__(self, num_prompt_tokens: int) -> None:
        self.num_prompt_tokens = num_prompt_tokens
        self.epoch = 1
        self.token_ids: list[int] = []
        self.finished = False
        self.num_refused = 0
        self._ahead: dict[int, TokenDelta] = {}

    @property
    def position(self) -> int:
        """The position that is delivered next."""
        return self.num_prompt_tokens + len(self.token_ids)

    @property
    def has_gap(self) -> bool:
        """Whether tokens wait for earlier ones."""
        return bool(self._ahead)

    def restart(self, epoch: int) -> None:
        """Go on with the tokens of ``epoch``; what waited from the one before is forgotten."""
        self.epoch = epoch
        self._ahead.clear()

    def accept(self, delta: TokenDelta) -> list[TokenDelta]:
        """Take one delta; returns what can be delivered now, in order.

        Raises GapTooLarge when more than MAX_BUFFERED_TOKENS would have to wait.
        """
        if self.finished or delta.epoch != self.epoch:
            self.num_refused += 1
            return []
        if delta.position > self.position:
            self._hold(delta)
            return []
        ready = self._deliver(delta)
        while self._ahead and not self.finished:
            first = min(self._ahead)
            if first > self.position:
                break
            ready += self._deliver(self._ahead.pop(first))
        return ready

    def _deliver(self, delta: TokenDelta) -> list[TokenDelta]:
        surplus = self.position - delta.position
        if surplus:
            trimmed = trim(delta, surplus)
            if trimmed is None:
                self.num_refused += 1
                return []
            delta = trimmed
        self.token_ids += delta.token_ids
        if delta.finish_reason is not None:
            self.finished = True
            self._ahead.clear()
        return [delta]

    def _hold(self, delta: TokenDelta) -> None:
        rival = self._ahead.get(delta.position)
        if rival is None or _reach(delta) > _reach(rival):
            self._ahead[delta.position] = delta
        if sum(len(held.token_ids) for held in self._ahead.values()) > MAX_BUFFERED_TOKENS:
            raise GapTooLarge(f"{delta.request_id}: position {self.position} does not come")


def trim(delta: TokenDelta, num_tokens: int) -> TokenDelta | None:
    """``delta`` without its first tokens; None when nothing new is left in it."""
    left = len(delta.token_ids) - num_tokens
    if left < 0 or (left == 0 and delta.finish_reason is None):
        return None
    return delta.model_copy(
        update={
            "position": delta.position + num_tokens,
            "token_ids": delta.token_ids[num_tokens:],
            "logprobs": _without_first(delta.logprobs, num_tokens),
            "prompt_logprobs": None,
        }
    )


def _without_first(logprobs: TokenLogprobs | None, num_tokens: int) -> TokenLogprobs | None:
    if logprobs is None:
        return None
    return TokenLogprobs(
        token_ids=logprobs.token_ids[num_tokens:],
        logprobs=logprobs.logprobs[num_tokens:],
        ranks=logprobs.ranks[num_tokens:],
    )


def _reach(delta: TokenDelta) -> tuple[int, bool]:
    return len(delta.token_ids), delta.finish_reason is not None
