"""The second process as seen from the first."""

import json
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu_transfer.worker import Setup

ROOT = Path(__file__).parents[2]


class Peer:
    def __init__(self, arguments: list[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu_transfer", "--receive", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._is_up = False

    def tell(self, what: str, **arguments: object) -> None:
        """Without waiting for the answer; ``hear`` it later."""
        if not self._is_up:
            self._is_up = self.hear() == "up"
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the receiving process has ended")
        return json.loads(line)

    def ask(self, what: str, **arguments: object) -> Any:
        self.tell(what, **arguments)
        return self.hear()

    def open(self, setup: Setup) -> str:
        return str(self.ask("open", **asdict(setup)))

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
