"""What the gateway, scheduler and bus cost: a pool of one instance against plain ``vllm serve``."""
