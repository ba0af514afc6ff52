"""Images → masks on the disk.

Imports `inference` and what lies below it. Exports what is written for an image (`wanted`), names of files (`names`,
`plan`, `earlier` ones), the work (`predict`, in batches of `batching`, with `tiles` for large images and `writing` for
the files), the same from Python and what became of the images (`shards`), and what needs further packages:
`georeference` and `video`.
"""
