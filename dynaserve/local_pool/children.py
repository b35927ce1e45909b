"""One process of the pool: started, watched, ended; its output in a file."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

from dynaserve.local_pool.plan import Part
from infra.processes import die_with_parent

TAIL_LINES = 15


class Child:
    """Owns one process. It dies with this one, however this one ends."""

    def __init__(self, part: Part, log_folder: Path) -> None:
        self.part = part
        self.log_path = log_folder / f"{part.name}.log"
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **self.part.environment}
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self.part.module,
                *self.part.arguments,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(),
                start_new_session=True,  # Ctrl-C reaches us alone; we end them in order
            )

    async def wait(self) -> int:
        """Exit status, once it has ended."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self, deadline_s: float) -> None:
        """SIGTERM, and after ``deadline_s`` SIGKILL to it and all it started."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), deadline_s)
        except TimeoutError:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    def kill(self) -> None:
        """SIGKILL at once (fault tests)."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def log_tail(self) -> str:
        """The last lines it wrote."""
        if not self.log_path.exists():
            return ""
        lines = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-TAIL_LINES:])
