"""Masks + labels → scores.

Imports `inference`, `methods` and lower rooms. Exports scores of masks (`evaluate`) under a `protocol` by `metrics`, of
frozen features (`probe`), and the masks that methods are compared with (`baselines`).
"""
