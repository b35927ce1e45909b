"""The KV connector inside vLLM. One of the three places that touch vLLM's internals.

``connector`` is the class vLLM loads; ``scheduler_side`` decides what is sent, held and expected,
``worker_side`` moves it through the KV port, ``step`` is what the two tell each other each step,
``rows`` shows vLLM's cache as rows of bytes, and ``continuity`` makes a V1 model runner go on
sampling where another engine stopped.
"""
