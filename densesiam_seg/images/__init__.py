"""Untrusted files → pixels and labels.

Imports `io`. Exports the list of images that the user named (`scan`: `candidates` → `manifest`), an image or
label from its file (`opening`, `tiff`, `pixels`, `decode`, `labels`; `decoding` has the choices), and a run's images as
batches of squares (`store`, `cache`; `crew` has processes that decode).
"""
