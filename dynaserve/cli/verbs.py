"""What ``dynaserve`` can be asked to do: one line a verb."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Verb:
    """Where a verb is implemented, and what the help says of it without importing that.

    ``target`` is ``module:function``, the function annotated as typer wants it. With ``raw`` it
    takes the list of arguments after the verb instead, and answers ``--help`` itself.
    """

    target: str
    help: str
    raw: bool = False

    def load(self) -> Callable[..., object]:
        """Import the module and give the function."""
        module, _, name = self.target.partition(":")
        function: Callable[..., object] = getattr(import_module(module), name)
        return function


VERBS: dict[str, Verb] = {
    "up": Verb("dynaserve.cli.up:up", "Serve a model on this machine: the whole pool.", raw=True),
    "gateway": Verb("services.gateway.__main__:main", "Run one gateway.", raw=True),
    "scheduler": Verb("services.global_sched.__main__:main", "Run one scheduler.", raw=True),
    "instance": Verb("services.gpu_instance.__main__:main", "Run one GPU instance.", raw=True),
    "kv-transfer": Verb("services.kv_transfer.__main__:main", "Coordinate KV handoffs.", raw=True),
    "certify": Verb("dynaserve.cli.certify:certify", "Prove that cutting changes nothing."),
    "bench": Verb(
        "dynaserve.cli.bench:main", "Replay traces, find capacity, compare systems.", raw=True
    ),
    "profile": Verb("dynaserve.cli.profile:profile", "Fit the latency model to an instance."),
    "simulate": Verb("dynaserve.cli.simulate:simulate", "What a pool would do with a trace."),
    "dashboards": Verb("dynaserve.cli.dashboards:main", "Boards for Grafana.", raw=True),
    "explain": Verb("dynaserve.cli.explain:explain", "Say why a request took as long as it did."),
    "top": Verb("dynaserve.cli.top:top", "Watch the pool in the terminal."),
    "doctor": Verb("dynaserve.cli.doctor:doctor", "Say what is wrong, and how to mend it."),
}
