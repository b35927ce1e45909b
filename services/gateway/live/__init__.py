"""The live page: what it shows, and how it reaches whoever looks."""
