"""``python -m dynaserve``: the command, where its script is not on the path."""

from dynaserve.cli.app import main

if __name__ == "__main__":
    main()
