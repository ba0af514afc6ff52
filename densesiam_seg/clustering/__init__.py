"""Features of pixels → clusters. The only room that imports FAISS.

Imports `io`. Exports k-means (`kmeans`), merging of over-clusters (`merging`), pairing and mutual information of two
clusterings (`agreement`), what clusters are worth without labels (`quality`), and what training starts from: the
mixture of Gaussians over appearance (`appearance` → `gaussians` → `mixture`) and that of learned features
(`directions`).
"""
