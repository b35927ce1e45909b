"""Fit the latency model to a running engine: designed batches in, timed steps out, a JSON file.

``plan`` designs the batches (pure), ``drive`` runs them on one instance over the bus, ``fit`` makes
the profile.
"""
