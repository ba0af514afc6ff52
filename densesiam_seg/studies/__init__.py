"""Many runs → one table: the paper's ablations over several seeds.

Imports `training`, `evaluation` and below. `study` runs a `plan` of `ablations`, run by run (`runs`), into `tables`.
"""
