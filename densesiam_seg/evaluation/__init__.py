"""Masks and labels → scores.

Imports `inference`, `datasets` and below. Exports `evaluate` under a `protocol` by `metrics`, the probes of frozen
features (`probe`), and what methods are compared with (`baselines`).
"""
