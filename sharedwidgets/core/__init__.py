"""What server, kernel and browser must agree on, as pure code.

Rule of the house: nothing in this package knows a clock, a thread, a socket, an event loop, chance, traitlets or tornado.
Time, ids and secrets are arguments; what should happen is returned. The TypeScript twin in ``js/src`` follows the same rule,
and ``tests/vectors`` holds the cases both must agree on.
"""
