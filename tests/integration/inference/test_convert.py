"""A hostile checkpoint file given to dfer convert."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from dfer_dist.inference.convert import from_official
from dfer_dist.utils.errors import UserError
from tests.helpers.cli import check_refusal, dfer
from tests.helpers.models.golden import Bomb


def test_hostile_file_is_one_line_error_and_runs_nothing(tmp_path: Path) -> None:
    proof, path = tmp_path / "proof", tmp_path / "hostile.pth"
    bombs = [Bomb(os.system, f"touch {proof}"), Bomb(eval, f"open({str(proof)!r}, 'w')")]
    for bomb in bombs:
        torch.save({"state_dict": {"module.x": torch.zeros(2)}, "recorder": bomb}, path)
        with pytest.raises(UserError, match=r"cannot be read|not a checkpoint"):
            from_official(path, tmp_path / "out")
    check_refusal(dfer("convert", "official", path, tmp_path / "out", cwd=tmp_path))
    assert not proof.exists()
    assert not (tmp_path / "out").exists()
