"""What every test can use."""

pytest_plugins = ["dynaserve.testing"]
