"""The boards as JSON: ``python -m infra.grafana`` writes ``generated/`` anew."""

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from infra.grafana.boards import BOARDS

FOLDER = Path(__file__).parent / "generated"


def generate() -> dict[str, str]:
    """File name -> JSON text of each board."""
    encoder = JSONEncoder(sort_keys=True, indent=2)
    return {f"{name}.json": encoder.encode(make().build()) + "\n" for name, make in BOARDS.items()}


def write(folder: Path = FOLDER) -> None:
    """Write every board, and remove what is none any more."""
    boards = generate()
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.json"):
        if old.name not in boards:
            old.unlink()
    for name, text in boards.items():
        (folder / name).write_text(text)
