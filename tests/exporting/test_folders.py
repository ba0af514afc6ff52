"""What stands beside images and masks; `test_dataset` and `test_readers` read these."""

from __future__ import annotations

import json
from pathlib import Path

from exported import FILES, export


def test_the_card_of_a_data_set_is_a_table(tmp_path: Path) -> None:
    e = export(tmp_path, "hf")
    text = (e.out / "README.md").read_text("utf-8")
    assert text.startswith("---\ntask_categories:\n- image-segmentation\n")
    assert "| 0 | sky | 0 |" in text and "| 7 | \\| | 8 |" in text
    rows = (e.out / "train/metadata.jsonl").read_text("utf-8").splitlines()
    assert len({json.loads(row)["image_file_name"] for row in rows}) == len(FILES)


def test_numbers_without_gaps_are_told_beside_the_ids(tmp_path: Path) -> None:
    e = export(tmp_path, "mmseg")
    listed = json.loads((e.out / "classes.json").read_text("utf-8"))
    assert [each["number"] for each in listed] == [*range(8)]
    assert [each["cluster"] for each in listed] == [0, 1, 2, 4, 5, 6, 7, 8]
