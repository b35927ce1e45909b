"""Errors of the data plane.

HandoffError
└── LinkError              something between two KV ports went wrong
    ├── TransportRefused   the forced transport cannot join these two ports
    ├── PathUnavailable    this transport cannot be built here; another may
    └── LinkBroken         the peer closed, stalled or spoke nonsense: the link is over
        └── PeerRefused    the peer answered the hello with a refusal
"""

from shared.errors import HandoffError


class LinkError(HandoffError):
    """Something between two KV ports went wrong."""


class TransportRefused(LinkError):
    """The transport asked for cannot join these two ports."""


class PathUnavailable(LinkError):
    """This transport cannot be built between these ports; another one may."""


class LinkBroken(LinkError):
    """The peer closed, stalled or broke the protocol; the link cannot go on."""


class PeerRefused(LinkBroken):
    """The peer answered the hello with a refusal; its message says why."""
