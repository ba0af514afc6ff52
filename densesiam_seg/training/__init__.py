"""Images → a model: step, epoch, run. `train` and `pretrain` are the use cases, both in `train.py`.

Imports `methods`, `inference` and lower rooms. Exports `train`: `setup` prepares a run, `loop` trains it, `checkpoint`
saves its state, `snapshot` turns the network under training into a Segmenter; `recipes` has the differences between the
two kinds of run, `weights` the initial weights.
"""
