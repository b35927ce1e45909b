"""The one place in the gateway that imports vLLM: its HTTP application and front half over a pool.

``translate`` turns vLLM's requests and outputs into ours; ``client`` is the engine client that
stands where vLLM's ZMQ one would; ``front_half`` builds vLLM's AsyncLLM over it; ``application``
builds the HTTP application; ``server`` runs it on a socket.
"""
