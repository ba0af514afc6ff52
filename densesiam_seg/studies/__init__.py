"""Many runs → one table: the paper's ablations over several seeds.

Imports `training`, `evaluation` and lower rooms. Exports `study`: a `plan` of `ablations` → `runs` → `tables`.
"""
