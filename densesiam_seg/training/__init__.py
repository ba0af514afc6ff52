"""Images → a model: step, epoch, run. `train` and `pretrain` are the use cases.

Imports `methods`, `inference` and below. Exports `train`, `pretrain`, the initial `weights`, and the loop behind them
(`run` → `setup` → `loop`, saved by `checkpoint`).
"""
