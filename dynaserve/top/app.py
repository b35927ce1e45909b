"""The textual application: four tables, fed by snapshots."""

from collections.abc import AsyncIterator, Callable, Iterable
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widgets import DataTable, Footer, Static

from dynaserve.top import rows
from dynaserve.top.detail import Detail
from dynaserve.top.feed import Trouble, feed
from shared.schemas.live import LiveSnapshot

Feed = Callable[[str], AsyncIterator[LiveSnapshot | Trouble]]
Row = tuple[str, list[Text]]

WIDE = 130
"""Columns from which handoffs stand beside the requests."""

TABLES = {
    "classes": ("1 Objectives held in the last minute", rows.CLASS_COLUMNS),
    "instances": ("2 Instances", rows.INSTANCE_COLUMNS),
    "requests": ("3 Last requests", rows.REQUEST_COLUMNS),
    "handoffs": ("4 Last handoffs", rows.HANDOFF_COLUMNS),
}


def _table(name: str, title: str) -> DataTable[Text]:
    table: DataTable[Text] = DataTable(id=name, cursor_type="row")
    table.border_title = title
    return table


class TopApp(App[None]):
    """Every snapshot is whole: tables are filled anew, the cursor stays on its row."""

    TITLE = "dynaserve top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #headline { height: 1; }
    DataTable { border-top: solid $primary-darken-2; border-title-color: $text-muted; height: 1fr; }
    DataTable:focus { border-top: solid $accent; }
    DataTable { scrollbar-size: 1 1; scrollbar-color: $surface-lighten-2; }
    #classes { height: auto; max-height: 9; }
    #instances { height: auto; max-height: 40%; }
    #below { height: 1fr; }
    #requests { width: 2fr; }
    #handoffs { width: 1fr; display: none; }
    #handoffs.wide, #handoffs.wanted { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("p", "pause", "Pause"),
        Binding("m", "missed", "Missed only"),
        Binding("w", "worst", "Worst first"),
        Binding("h", "handoffs", "Handoffs"),
        Binding("e", "explain", "Explain"),
        Binding("1", "go('classes')", "Objectives", show=False),
        Binding("2", "go('instances')", "Instances", show=False),
        Binding("3", "go('requests')", "Requests", show=False),
        Binding("4", "go('handoffs')", "Handoffs", show=False),
    ]

    def __init__(self, url: str, source: Feed = feed) -> None:
        super().__init__()
        self._url = url
        self._source = source
        self._snapshot: LiveSnapshot | None = None
        self._trouble: str | None = None
        self._paused = self._missed = self._worst = False
        self._line = Static(f"connecting to {url}", id="headline")
        self._tables = {name: _table(name, title) for name, (title, _) in TABLES.items()}

    def compose(self) -> ComposeResult:
        yield self._line
        yield self._tables["classes"]
        yield self._tables["instances"]
        with Horizontal(id="below"):
            yield self._tables["requests"]
            yield self._tables["handoffs"]
        yield Footer()

    def on_mount(self) -> None:
        for name, (_, columns) in TABLES.items():
            self._tables[name].add_columns(*columns)
        self._tables["requests"].focus()
        self.run_worker(self._follow(), exclusive=True)

    def on_resize(self) -> None:
        self._tables["handoffs"].set_class(self.size.width >= WIDE, "wide")

    async def _follow(self) -> None:
        async for news in self._source(self._url):
            if isinstance(news, Trouble):
                self._trouble = news.message
            else:
                self._trouble = None
                if not self._paused:
                    self._snapshot = news
            self.show()

    def show(self) -> None:
        """Draw the latest snapshot."""
        line, snapshot = self._line, self._snapshot
        if snapshot is None:
            line.update(Text(f"{self._trouble or 'connecting'}; trying again", style="bold red"))
            return
        line.update(rows.headline(snapshot, self._paused, self._trouble))
        instances = snapshot.instances
        if self._worst:
            instances = rows.worst_first(instances)
        requests = [r for r in snapshot.requests if not self._missed or not r.slo_met]
        self._fill("classes", [(c.name, rows.class_row(c)) for c in snapshot.classes])
        self._fill("instances", [(i.instance_id, rows.instance_row(i)) for i in instances])
        self._fill("requests", [(r.request_id, rows.request_row(r)) for r in requests])
        self._fill("handoffs", [(h.handoff_id, rows.handoff_row(h)) for h in snapshot.handoffs])

    def _fill(self, name: str, wanted: Iterable[Row]) -> None:
        table = self._tables[name]
        kept, scroll_y = self._chosen(table), table.scroll_y
        table.clear()
        for key, cells in {key: cells for key, cells in wanted}.items():
            table.add_row(*cells, key=key)
        if kept is not None and kept in table.rows:
            table.move_cursor(row=table.get_row_index(kept), scroll=False)
        table.scroll_y = scroll_y

    def _chosen(self, table: DataTable[Text]) -> str | None:
        """Key of the row under the cursor; None while it stands at the top, to stay there."""
        if not table.row_count or table.cursor_row <= 0:
            return None
        return table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value

    # -- keys -------------------------------------------------------------------------------------

    def action_pause(self) -> None:
        self._paused = not self._paused
        self.show()

    def action_missed(self) -> None:
        self._missed = not self._missed
        self.show()

    def action_worst(self) -> None:
        self._worst = not self._worst
        self.show()

    def action_handoffs(self) -> None:
        self._tables["handoffs"].toggle_class("wanted")

    def action_go(self, name: str) -> None:
        if name == "handoffs":
            self._tables["handoffs"].add_class("wanted")
        self._tables[name].focus()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Enter or a click on a request."""
        if event.data_table.id == "requests":
            self._explain(event.row_key.value)

    def action_explain(self) -> None:
        table = self._tables["requests"]
        if table.row_count:
            self._explain(table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value)

    def _explain(self, request_id: str | None) -> None:
        known = self._snapshot.requests if self._snapshot is not None else []
        row = next((r for r in known if r.request_id == request_id), None)
        if row is not None:
            self.push_screen(Detail(self._url, row.http_request_id, row.request_id))
