# Every target sets up first; a second set-up does nothing.
.PHONY: up test lint unit setup clean

setup:
	@scripts/setup

up: setup
	@.venv/bin/python -m dynaserve.demo_model
	@exec .venv/bin/dynaserve up

test: lint
	@scripts/test

lint: setup
	@scripts/check

unit: setup
	@scripts/test tests/unit

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
