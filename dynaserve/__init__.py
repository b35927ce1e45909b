"""What people touch: the ``dynaserve`` command, the Python client, the test plugin."""
