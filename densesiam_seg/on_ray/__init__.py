"""Work on the machines of a Ray cluster, for those whose jobs run there.

Imports `evaluation`, `prediction` and lower rooms; `cluster` alone imports ray, an extra. Exports an evaluation
(`scoring`) and a prediction (`predicting`) by the cluster's workers, each of which loads the model once.
"""
