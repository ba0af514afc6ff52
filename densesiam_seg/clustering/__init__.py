"""Features of pixels → clusters. The only room that imports FAISS.

Imports `io` and `peers`. Exports k-means (`kmeans`; `lloyd`, the same for any number of processes), merging of
over-clusters (`merging`), pairing and mutual information of two clusterings (`agreement`), what clusters are worth
without labels (`quality`), and what training starts from: the mixture of Gaussians over appearance (`appearance` →
`gaussians` → `mixture`) and that of learned features (`directions`).
"""
