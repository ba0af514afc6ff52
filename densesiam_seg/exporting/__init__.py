"""A model, or its masks, in the formats of other programs.

Imports `prediction` and what lies below it, and `datasets` for the image that a model is checked on. Exports images
with their masks (`masks`, which knows the layouts: `voc`, `folders`, `labelling`, `objects`), the model (`model`) and
its backbone (`backbone`).
"""
