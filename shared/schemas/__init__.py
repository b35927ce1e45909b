"""The messages on the bus: one module per conversation, every message frozen and versioned."""
