"""Policies and batcher modes on the same two real CPU engines, in turn, on the same requests."""
