"""The simulator against the real system: the same requests through both, errors side by side."""
