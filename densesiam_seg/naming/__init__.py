"""Clusters as people see them: `clusters.json`, with names, merges and undo.

Imports `clustering`, `pictures` and `io`; nothing here needs torch. Exports the clusters of a model (`clusters`) and
their edits (`edits`).
"""
