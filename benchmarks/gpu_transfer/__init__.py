"""KV links between two GPUs of one host, without an engine.

    python -m benchmarks.gpu_transfer --json benchmarks/results/gpu_transfer.json

This process holds one GPU and a cache of the shape of Qwen2.5-14B in bf16 (48 layers, blocks of 16
tokens, 192 KiB a token), a second process the other. In the same run: what the hardware gives
(peer copy, plain NCCL), the copy kernels, the link by size of a handoff, many handoffs one after
the other, what a bystander's kernels lose to that, the ways through the host, and recovery from a
killed and from a frozen peer. Every transfer's blocks lie at random places; a share of them is
compared byte by byte.
"""
