"""The environment is plain JSON, and differences that change bits are named."""

from __future__ import annotations

import json

import torch

from densesiam_seg.io.environment import compare_fingerprints, environment, fingerprint


def test_the_environment_is_json_and_tells_the_truth() -> None:
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert found["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["threads"] == torch.get_num_threads()
    assert any(name.startswith("faiss-") for name in found["packages"])


def test_differences_are_named_one_by_one() -> None:
    saved = {"threads": 2, "torch": "2.15.0", "cuda": ["A", "A"], "faiss-gpu": "1.15"}
    now = {"threads": 1, "torch": "2.15.0", "cuda": [], "world": 2}
    assert compare_fingerprints(saved, now) == [
        "cuda A, A -> none",
        "faiss-gpu 1.15 -> none",
        "threads 2 -> 1",
        "world none -> 2",
    ]


def test_gpus_count_only_for_a_run_that_uses_one() -> None:
    facts = {**environment(), "cuda": []}
    with_gpu = {**facts, "cuda": ["GPU"]}
    one, two = (fingerprint(each, device="cpu", precision="fp32") for each in (facts, with_gpu))
    assert compare_fingerprints(one, json.loads(json.dumps(two))) == []
    one, two = (fingerprint(each, device="cuda", precision="fp32") for each in (facts, with_gpu))
    assert compare_fingerprints(one, two) == ["cuda none -> GPU"]
