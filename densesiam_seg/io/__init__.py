"""Files, tensors, processes and randomness.

Imports no other room. Exports atomic files (`files`), safetensors (`tensors`), records as JSON lines (`records`), the
run directory (`run_directory`) with its lock (`lock`), signals (`signals`), devices and their cores (`devices`,
`parallel`), the environment of a run (`environment`), and random numbers that are functions of (seed, stream, round,
image, view) (`randomness`).
"""
