"""Many runs → one table: the paper's ablations over several seeds.

Imports `training`, `evaluation` and below. Exports `study`.
"""
