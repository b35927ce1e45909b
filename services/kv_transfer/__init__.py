"""KV hand-over between instances: data plane, coordinator, vLLM connector."""
