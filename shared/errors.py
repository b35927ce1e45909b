"""Errors of DynaServe, one tree; each carries its data.

DynaServeError
├── InvalidRequest        the caller's fault: param names what to change (HTTP 400)
├── Overloaded            cannot meet its SLO now: retry_after_s (HTTP 429)
├── NoInstance            nothing in the pool can run it (HTTP 503)
├── RequestFailed         ran and failed, recovery included (HTTP 500)
├── BusError              the bus is away or refused
│   ├── NoResponder       nobody listens on the subject
│   ├── BusTimeout        no answer within its deadline
│   └── NatsServerError   the embedded NATS server cannot be found or started
├── GeometryMismatch      two instances cannot exchange KV
├── HandoffError          a handoff cannot go on
│   └── BookFull          too many handoffs open
└── EngineFailed          the engine stopped
"""


class DynaServeError(Exception):
    """Base of everything this project raises on purpose."""


class InvalidRequest(DynaServeError):
    """The request cannot run as it is; ``param`` names what to change."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class Overloaded(DynaServeError):
    """No placement would meet the SLO; ``retry_after_s`` is the predicted wait."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NoInstance(DynaServeError):
    """No instance in the pool can take the request."""


class RequestFailed(DynaServeError):
    """The request was started and could not be finished."""


class BusError(DynaServeError):
    """The message bus is away or refused the message."""


class NoResponder(BusError):
    """Nobody listens on ``subject``."""

    def __init__(self, subject: str) -> None:
        super().__init__(f"nobody listens on {subject}")
        self.subject = subject


class BusTimeout(BusError):
    """No answer on ``subject`` within ``timeout_s``."""

    def __init__(self, subject: str, timeout_s: float) -> None:
        super().__init__(f"no answer on {subject} within {timeout_s} s")
        self.subject = subject
        self.timeout_s = timeout_s


class NatsServerError(BusError):
    """The embedded NATS server cannot be found, started or reached."""


class GeometryMismatch(DynaServeError):
    """Two instances cannot exchange KV; the message names the fields that differ."""


class HandoffError(DynaServeError):
    """A handoff cannot go on."""


class BookFull(HandoffError):
    """The coordinator's bound on open handoffs is reached."""


class EngineFailed(DynaServeError):
    """The engine stopped; the instance must be restarted."""
