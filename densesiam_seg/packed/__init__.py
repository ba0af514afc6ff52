"""Many in one: names in one piece of memory, and the images of a tar by their places.

Imports `io`. Exports a sequence of names without an object for each (`names`), the lines of a list of paths (`lists`),
what a tar holds (`tars`), and the file or member of a tar that a path means (`members`).
"""
