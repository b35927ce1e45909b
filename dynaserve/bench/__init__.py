"""The benchmark client: replays traces against any OpenAI endpoint and judges what came back.

Pure: ``load`` (what is sent when), ``prompts``, ``sse``, ``observation``, ``slo``, ``figures``,
``overhead`` (the verdict), ``ramp``, ``systems``. Around them: ``client`` and ``replay`` talk HTTP
under ``drive`` (``fleet``: from several processes),
``pool`` talks to the pool's control subjects, ``run`` puts it together, ``progress``, ``report``
and ``plot`` show it.
"""
