"""Why a request took as long as it did, worked out from its record alone. Pure."""

from shared.explanation.explain import explain
from shared.explanation.model import Cause, Explanation, Regret, Span

__all__ = ["Cause", "Explanation", "Regret", "Span", "explain"]
