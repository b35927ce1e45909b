"""Certification: a request cut anywhere gives what the uncut request gives, token by token.

``groups`` (ways of sampling), ``grid`` (which requests are cut where), ``outcome`` (what is equal),
``evidence`` (that the cut really happened) and ``tally`` are pure; ``client`` talks to the pool,
``run`` puts the pieces in order, ``report`` shows what came out.
"""
