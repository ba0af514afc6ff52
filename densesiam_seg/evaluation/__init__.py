"""Masks and labels → scores.

Imports `inference`, `datasets` and below. `evaluate` scores masks under a `protocol` by `metrics`, `probe` frozen
features; `baselines` are what methods are compared with.
"""
