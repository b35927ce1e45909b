"""The front door: OpenAI-compatible HTTP over a pool of instances; owns a request to its end."""
