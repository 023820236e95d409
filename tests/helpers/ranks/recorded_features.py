"""Ranks predict the test clips of a checkpoint and record their features; rank 0 writes them.

Arguments are a checkpoint and the file to write.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch

from dfer_dist.config.schema import Device
from dfer_dist.distributed.process_group import exit_process, init_distributed
from dfer_dist.evaluation.eval_clips import find_eval_clips
from dfer_dist.evaluation.evaluate import (
    build_test_loader,
    collect,
    load_model,
    open_checkpoint,
    predict,
)
from dfer_dist.evaluation.feature_recorder import FeatureRecorder, describe_features


def main() -> None:
    path, out = map(Path, sys.argv[1:])
    ranks = init_distributed(Device.cpu)
    saved, config, index = open_checkpoint(path, ["data.workers=0"])
    clips = find_eval_clips(saved, config, index).part.test
    model = load_model(saved, config, index.classes)
    with torch.no_grad():
        text = model.text_features()
    recorder = FeatureRecorder(model)
    batches = recorder.watch(build_test_loader(config, index, clips, ranks))
    rows = predict(partial(recorder.forward, text_features=text), batches, ranks.device)
    table = collect(rows, index, clips, ranks)
    recorder.gather(ranks)
    if table:
        assert 0 < len(rows) < len(table.keys)
        recorder.features(describe_features(saved, config, recorder, index, 2), table).write(out)
        print("{}")
    exit_process(0)


if __name__ == "__main__":
    main()
