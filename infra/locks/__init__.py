"""Pinned requirement files: how they are made and how they are checked."""
