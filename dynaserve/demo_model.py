"""The built-in demo model: a tiny Llama with random weights, made on first use, never fetched.

``python -m dynaserve.demo_model [FOLDER]`` makes it and prints where it is.
"""

import sys
from pathlib import Path

from dynaserve.demo.folder import make_folder, recipe_hash

__all__ = ["default_folder", "demo_model"]


def default_folder() -> Path:
    """Where the demo model lies: named after its recipe, so that a new recipe is a new model."""
    return Path.home() / ".cache" / "dynaserve" / f"demo-model-{recipe_hash()}"


def demo_model(folder: Path | None = None) -> Path:
    """The folder of the demo model, made if it is not there (well under a second)."""
    return make_folder(folder or default_folder())


def main() -> None:
    print(demo_model(Path(sys.argv[1]) if len(sys.argv) > 1 else None))


if __name__ == "__main__":
    main()
