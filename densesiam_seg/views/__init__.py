"""Sampled-then-replayed views: random parameters are drawn first, as values, and applied after.

Imports `io`. Exports the random `parameters`, changes of colour (`photometric`) and of geometry (`geometric`), and both
views of an image (`pair`).
"""
