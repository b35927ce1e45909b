"""``python -m infra.grafana``: write the boards' JSON anew."""

from infra.grafana.generate import write

if __name__ == "__main__":
    write()
