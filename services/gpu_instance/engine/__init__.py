"""Engines behind one seam (``seam.py``): vLLM's, and a simulated one for scale tests."""
