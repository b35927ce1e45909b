"""Grafana boards as code: ``boards`` makes them, ``generated`` holds them, ``push`` sends them."""
