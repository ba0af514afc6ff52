"""Images → masks on the disk.

Imports `inference` and what lies below it. Exports what is written for an image (`wanted`), names of files (`names`,
`plan`, `earlier` ones), the work (`predict`, in batches of `batching`, with `tiles` for large images and `writing` for
the files), its parts for several processes (`shards`), and what needs further packages: `georeference` and `video`.
"""
