"""One request on a screen of its own."""

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from dynaserve.explain.fetch import from_gateway
from dynaserve.explain.render import render
from shared.errors import DynaServeError
from shared.explanation import explain

MARGIN = 8


class Detail(ModalScreen[None]):
    """What ``dynaserve explain`` prints; closes with Escape."""

    CSS = """
    Detail { align: center middle; }
    Detail VerticalScroll { width: 92%; height: 90%; border: round $primary; padding: 0 2; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "Back"),
        Binding("q", "dismiss", "Back", show=False),
    ]

    def __init__(self, url: str, http_request_id: str, request_id: str) -> None:
        super().__init__()
        self._url = url
        self._http_request_id = http_request_id
        self._request_id = request_id

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Static("Looking it up", id="explanation")

    def on_mount(self) -> None:
        self.run_worker(self._look_up(), exclusive=True)

    async def _look_up(self) -> None:
        body = self.query_one("#explanation", Static)
        try:
            found = await from_gateway(self._url, self._http_request_id)
        except DynaServeError as error:
            body.update(Text(str(error), style="bold red"))
            return
        record = next(
            (r for r in found.requests if r.request_id == self._request_id), found.requests[0]
        )
        own = [h for h in found.handoffs if h.request_id == record.request_id]
        width = int(self.size.width * 0.92) - MARGIN
        body.update(render(record, own, explain(record, own), width))
