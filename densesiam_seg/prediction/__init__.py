"""Images → masks on the disk.

Imports `inference` and what lies below it. Exports `predict` for folders.
"""
