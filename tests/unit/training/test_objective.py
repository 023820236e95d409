import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dfer_dist.config.schema import Config, ModelConfig, TrainConfig
from dfer_dist.training.objective import Objective, class_weights

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0], [1.0, 1.0, 1.0]])
CPU = torch.device("cpu")


def test_a_lost_clip_counts_as_zero_and_has_no_gradient():
    logits = LOGITS.clone().requires_grad_()
    loss = Objective(Config(), [], CPU)(
        {"positive": logits}, torch.tensor([0, 2, 1]), torch.tensor([True, True, False])
    ).mean()
    loss.backward()
    assert loss.item() == pytest.approx(
        F.cross_entropy(LOGITS[:2], torch.tensor([0, 2])).item() * 2 / 3
    )
    assert logits.grad[2].abs().max() == 0
    assert logits.grad[0].abs().max() > 0


def test_label_smoothing_by_hand():
    objective = Objective(Config(train=TrainConfig(label_smoothing=0.3)), [], CPU)
    loss = objective({"positive": LOGITS[:1]}, torch.tensor([0]), torch.tensor([True])).mean()
    logs = LOGITS[0].log_softmax(0)
    assert loss.item() == pytest.approx(-(0.7 * logs[0] + 0.1 * logs.sum()).item(), rel=1e-6)


def test_class_weights_by_hand():
    weights = class_weights([10, 1000, 0], 0.99).double().numpy()
    raw = np.array([0.01 / (1 - 0.99**10), 0.01 / (1 - 0.99**1000)])
    np.testing.assert_allclose(weights, [*(2 * raw / raw.sum()), 0], rtol=1e-6)


def test_rare_classes_weigh_more_the_larger_beta_is():
    mild, strong = class_weights([20, 2000], 0.9), class_weights([20, 2000], 0.9999)
    assert 1 < mild[0] / mild[1] < strong[0] / strong[1] < 100


def test_class_balance_weighs_each_clip_by_its_class():
    counts = [5, 50, 500]
    objective = Objective(Config(train=TrainConfig(class_balance=0.99)), counts, CPU)
    loss = objective({"positive": LOGITS}, torch.tensor([0, 1, 2]), torch.tensor([True] * 3)).mean()
    by_clip = F.cross_entropy(LOGITS, torch.tensor([0, 1, 2]), reduction="none")
    assert loss.item() == pytest.approx(
        (by_clip * class_weights(counts, 0.99)).mean().item(), rel=1e-6
    )


def test_the_negative_side_is_added_with_its_weight():
    objective = Objective(Config(model=ModelConfig(negative_weight=0.5)), [], CPU)
    losses = objective(
        {"positive": LOGITS, "negative": LOGITS.flip(1)},
        torch.tensor([0, 2, 1]),
        torch.tensor([True, True, False]),
    )
    logs = LOGITS.log_softmax(1)
    by_hand = [-(logs[0, 0] + 0.5 * logs[0, 2]), -(logs[1, 2] + 0.5 * logs[1, 0]), 0.0]
    assert losses.tolist() == pytest.approx([float(x) for x in by_hand], rel=1e-6)
