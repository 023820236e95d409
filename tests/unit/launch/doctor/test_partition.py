"""What Slurm's clients print."""

from __future__ import annotations

from launch.doctor.partition import Node, parse_seconds


def test_output_of_slurm_is_parsed() -> None:
    assert [parse_seconds(w) for w in ("30:00", "01:00:00", "2-00:00:00", "UNLIMITED")] == [
        1800,
        3600,
        172800,
        float("inf"),
    ]
    node = Node.parse("n1|8+|8000|mixed|(null)|gpu:a100:2(S:0),gpu:h100:1,shard:16")
    assert node.sizes == {"processor": 8, "GPU": 3, "GB of memory": 7.8125}
    assert node.in_service
    assert not Node.parse("n1|8|8000|idle*|x|(null)").in_service
    assert Node.parse("n1|8|8000|idle|x|(null)").sizes["GPU"] == 0
