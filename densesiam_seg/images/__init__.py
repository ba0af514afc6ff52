"""Untrusted files → pixels and labels.

Imports `io`. Exports the list of images that the user named (`scan`: `lists`, `candidates` → `manifest`), an image or
label from its file (`opening`, `pixels`, `decode`, `labels`), and a run's images as batches of squares (`store`,
`cache`).
"""
