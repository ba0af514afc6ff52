"""Sampled-then-replayed views: random parameters are drawn first, as values, and applied after.

Imports `io`. Exports what is drawn (`parameters`), changes of colour (`photometric`) and of place (`geometric`), and
both views of an image (`pair`).
"""
