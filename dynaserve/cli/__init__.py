"""The ``dynaserve`` command; one file a verb."""
