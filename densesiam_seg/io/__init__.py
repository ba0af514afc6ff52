"""Files, tensors, processes and randomness.

Imports no other room. Exports atomic files (`files`), JSON with its own digest (`sealed`), safetensors (`tensors`),
records as JSON lines (`records`), the run directory (`run_directory`) with its lock (`lock`), notes of what was written
(`outputs`), signals (`signals`), devices and their cores (`devices`, `parallel`), the environment of a run
(`environment`), and random numbers that are functions of (seed, stream, round, image, view) (`randomness`).
"""
