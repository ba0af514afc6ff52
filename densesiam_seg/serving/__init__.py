"""The local page on which clusters are looked at, named and merged.

Imports `inference`, `naming`, `images` and what lies below them; the server is that of Python's standard library.
Exports `Server` (who may ask, and how much) and `View` (what is shown: one model and its images). The page itself is
`page.html`, `page.css` and the `.js` files: no framework, no build step, nothing from elsewhere.
"""
