"""Files that nobody vouches for → pixels and labels.

Imports `io`. Exports the list of images that the user named (`scan` → `manifest`), one image or label from its file
(`decode`, `labels`), and all images of a run as batches of uint8 squares (`store`, kept by `cache`).
"""
