"""Losses of a training step, held against sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dfer_dist.config.schema import (
    Config,
    ModelConfig,
    Output,
    Supervision,
    TrainConfig,
    split_batch,
)
from dfer_dist.data.loading.mixing import mix_targets
from dfer_dist.models.dferclip import ModelOutputs
from dfer_dist.training.losses import Objective, class_weights, contrastive_loss
from dfer_dist.utils.errors import UserError

CPU = torch.device("cpu")
LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0], [1.0, 1.0, 1.0]])


def features(count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    video, text = (
        F.normalize(torch.randn(count, 8, generator=generator), dim=-1).requires_grad_()
        for _ in range(2)
    )
    return video, text


def test_contrastive_loss_by_hand_with_a_clip_without_text() -> None:
    video, text = features()
    losses = contrastive_loss(video, text, torch.tensor([True, False, True, True]), 0.1)
    kept = [0, 2, 3]
    cosines = video[kept].double() @ text[kept].double().t() / 0.1
    by_hand = -(cosines.log_softmax(1).diagonal() + cosines.log_softmax(0).diagonal()) / 2
    assert losses[kept].tolist() == pytest.approx(by_hand.tolist(), rel=1e-5)
    assert losses[1] == 0
    losses.mean().backward()
    for x in (video, text):
        assert x.grad is not None and x.grad[kept].abs().sum(1).min() > 0.01
        assert not x.grad[1].any(), "a clip without a text has no gradient"
    one = contrastive_loss(*features(), torch.tensor([False, True, False, False]), 0.1)
    none = contrastive_loss(*features(), torch.zeros(4, dtype=torch.bool), 0.1)
    assert one.tolist() == none.tolist() == [0, 0, 0, 0]


def test_both_losses_are_added_with_a_weight_without_lost_clips() -> None:
    video, text = features()
    logits, labels, valid = (
        torch.randn(4, 3),
        torch.tensor([0, 1, 2, 0]),
        torch.tensor([True, True, True, False]),
    )
    outputs = ModelOutputs(positive=logits, video=video, description=text)
    both = Config(
        train=TrainConfig(objective=Supervision.both, description_weight=0.25),
        model=ModelConfig(temperature=0.5),
    )
    losses = Objective(both, [], CPU)(outputs, labels, valid, torch.ones(4, dtype=torch.bool))
    want = F.cross_entropy(logits, labels, reduction="none") + 0.25 * contrastive_loss(
        video, text, valid, both.model.temperature
    )
    assert losses[:3].tolist() == pytest.approx(want[:3].tolist()) and losses[3] == 0
    both.train.objective = Supervision.descriptions
    alone = Objective(both, [], CPU)
    assert not alone.uses_labels
    out = alone(
        ModelOutputs(video=video, description=text), labels, valid, torch.ones(4, dtype=torch.bool)
    )
    assert out.tolist() == pytest.approx(
        contrastive_loss(video, text, valid, both.model.temperature).tolist()
    )


def test_lost_clip_has_zero_loss_and_no_gradient():
    logits = LOGITS.clone().requires_grad_()
    loss = Objective(Config(), [], CPU)(
        ModelOutputs(positive=logits), torch.tensor([0, 2, 1]), torch.tensor([True, True, False])
    ).mean()
    loss.backward()
    assert loss.item() == pytest.approx(
        F.cross_entropy(LOGITS[:2], torch.tensor([0, 2])).item() * 2 / 3
    )
    assert logits.grad[2].abs().max() == 0
    assert logits.grad[0].abs().max() > 0


def test_label_smoothing_by_hand():
    objective = Objective(Config(train=TrainConfig(label_smoothing=0.3)), [], CPU)
    loss = objective(
        ModelOutputs(positive=LOGITS[:1]), torch.tensor([0]), torch.tensor([True])
    ).mean()
    logs = LOGITS[0].log_softmax(0)
    assert loss.item() == pytest.approx(-(0.7 * logs[0] + 0.1 * logs.sum()).item(), rel=1e-6)


def test_class_weights_by_hand():
    weights = class_weights([10, 1000, 0], 0.99).double().numpy()
    raw = np.array([0.01 / (1 - 0.99**10), 0.01 / (1 - 0.99**1000)])
    np.testing.assert_allclose(weights, [*(2 * raw / raw.sum()), 0], rtol=1e-6)


def test_class_without_a_whole_clip_weighs_as_with_one() -> None:
    assert torch.equal(class_weights([0.2, 30.5, 0], 0.99), class_weights([1, 30.5, 0], 0.99))
    assert class_weights([1, 30.5], 0.99)[1] < class_weights([1, 30], 0.99)[1]


def test_rare_classes_weigh_more_with_a_larger_beta():
    mild, strong = class_weights([20, 2000], 0.9), class_weights([20, 2000], 0.9999)
    assert 1 < mild[0] / mild[1] < strong[0] / strong[1] < 100


def test_class_balance_weights_each_clip_by_its_class():
    counts = [5, 50, 500]
    objective = Objective(Config(train=TrainConfig(class_balance=0.99)), counts, CPU)
    loss = objective(
        ModelOutputs(positive=LOGITS), torch.tensor([0, 1, 2]), torch.tensor([True] * 3)
    ).mean()
    by_clip = F.cross_entropy(LOGITS, torch.tensor([0, 1, 2]), reduction="none")
    assert loss.item() == pytest.approx(
        (by_clip * class_weights(counts, 0.99)).mean().item(), rel=1e-6
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("beta", [0.0, 0.99])
def test_mixed_clips_have_the_mixture_of_both_losses(smoothing: float, beta: float) -> None:
    """Label smoothing and class weights included, for both polarities, as torch's probabilities."""
    train = TrainConfig(label_smoothing=smoothing, class_balance=beta)
    objective = Objective(Config(train=train), [5, 50, 500], CPU)
    logits = torch.cat([LOGITS, LOGITS[:1] * 2]).requires_grad_()
    labels, valid = torch.tensor([0, 2, 1, 1]), torch.tensor([True, True, True, False])
    outputs = ModelOutputs(positive=logits, negative=logits.flip(1))
    own = torch.tensor([0.3, 0.3, 1.0, 1.0])
    mixed = objective(outputs, labels, valid, None, own)
    of_own, of_partner = (
        objective(outputs, labels[order], torch.ones(4, dtype=torch.bool))
        for order in ([0, 1, 2, 3], [1, 0, 3, 2])
    )
    want = torch.where(valid, own * of_own + (1 - own) * of_partner, 0.0)
    assert mixed.tolist() == pytest.approx(want.tolist(), rel=1e-5)
    assert mixed.tolist() != pytest.approx(of_own.tolist(), rel=1e-2)
    # smoothing after mixing, as torch does it with probabilities
    smooth = mix_targets(labels, own, 3) * (1 - smoothing) + smoothing / 3
    weights = class_weights([5, 50, 500], beta) if beta else torch.ones(3)
    by_hand = -(smooth * weights * logits.log_softmax(1)).sum(1)
    by_hand -= (smooth * weights * logits.flip(1).log_softmax(1)).sum(1)
    assert mixed[:3].tolist() == pytest.approx(by_hand[:3].tolist(), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("beta", [0.0, 0.99])
def test_loss_of_votes_is_the_mean_loss_of_the_votes(smoothing: float, beta: float) -> None:
    """With smoothing, class weights, the negative polarity and a lost clip; mixed clips too."""
    train = TrainConfig(label_smoothing=smoothing, class_balance=beta)
    objective = Objective(Config(train=train), [5.5, 50.25, 500], CPU)
    logits = torch.cat([LOGITS, LOGITS[:1] * 2])
    outputs = ModelOutputs(positive=logits, negative=logits.flip(1))
    votes = torch.tensor([[0.5, 0.3, 0.2], [0.0, 0.0, 1.0], [0.1, 0.9, 0.0], [1.0, 0.0, 0.0]])
    valid, own = torch.tensor([True, True, True, False]), torch.tensor([0.3, 0.3, 1.0, 1.0])
    by_vote = torch.stack(
        [objective(outputs, torch.full((4,), label), valid) for label in range(3)], dim=1
    )
    want = (votes * by_vote).sum(1)
    losses = objective(outputs, votes, valid)
    assert losses.tolist() == pytest.approx(want.tolist(), rel=1e-5) and losses[3] == 0
    mixed = objective(outputs, votes, valid, None, own)
    swapped = (votes[[1, 0, 3, 2]] * by_vote).sum(1)
    want = own * want + (1 - own) * swapped
    assert mixed[:2].tolist() == pytest.approx(want[:2].tolist(), rel=1e-5)
    assert mixed[2:].tolist() == losses[2:].tolist()


def test_loss_of_votes_for_one_class_is_that_of_the_label() -> None:
    objective = Objective(Config(), [], CPU)
    labels, valid = torch.tensor([0, 2, 1]), torch.ones(3, dtype=torch.bool)
    outputs = ModelOutputs(positive=LOGITS)
    of_votes = objective(outputs, F.one_hot(labels, 3).float(), valid)
    assert of_votes.tolist() == pytest.approx(objective(outputs, labels, valid).tolist())


def test_gradient_of_votes_is_that_of_their_divergence() -> None:
    votes = torch.tensor([[0.5, 0.3, 0.2], [0.0, 0.25, 0.75], [0.1, 0.9, 0.0]])
    logits, same = (LOGITS.clone().requires_grad_() for _ in range(2))
    Objective(Config(), [], CPU)(
        ModelOutputs(positive=logits), votes, torch.ones(3, dtype=torch.bool)
    ).sum().backward()
    F.kl_div(same.log_softmax(1), votes, reduction="sum").backward()
    assert logits.grad.flatten().tolist() == pytest.approx(same.grad.flatten().tolist(), abs=1e-6)


CLASSES = ("fear", "anger", "joy", "fear+joy")


def sigmoid_objective(histogram: list[int], **train: object) -> Objective:
    config = Config(model=ModelConfig(output=Output.sigmoid), train=TrainConfig(**train))
    return Objective(config, histogram, CPU, CLASSES)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_binary_cross_entropy_by_hand(smoothing: float, beta: float) -> None:
    """Of labels, of sets of them, and mixed; with smoothing and weights of the single classes."""
    objective = sigmoid_objective([5, 3, 0, 2], label_smoothing=smoothing, class_balance=beta)
    logits = torch.cat([LOGITS, LOGITS[:1] * 2])
    truth = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 0, 1], [1, 0, 1]])
    smooth = truth * (1 - smoothing) + smoothing / 2
    terms = -(smooth * logits.sigmoid().log() + (1 - smooth) * (1 - logits.sigmoid()).log())
    # seven clips have fear, three anger and two joy
    weights = class_weights([7, 3, 2], beta) if beta else torch.ones(3)
    want = (weights * terms).mean(1)
    valid, labels = torch.tensor([True, True, True, False]), torch.tensor([1, 3, 2, 3])
    losses = objective(ModelOutputs(positive=logits), labels, valid)
    assert losses.tolist() == pytest.approx([*want[:3].tolist(), 0], rel=1e-5)
    sets = torch.tensor([[0.0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 0], [1, 0, 1, 1]])
    assert torch.equal(objective(ModelOutputs(positive=logits), sets, valid), losses)
    both = ModelOutputs(positive=logits, negative=logits)
    assert objective(both, labels, valid).tolist() == pytest.approx((2 * losses).tolist())
    own = torch.tensor([0.3, 0.3, 1.0, 1.0])
    mixed = objective(ModelOutputs(positive=logits), labels, valid, None, own)
    halves = [
        objective(ModelOutputs(positive=logits), label, valid)
        for label in (labels, labels[[1, 0, 3, 2]])
    ]
    want = own * halves[0] + (1 - own) * halves[1]
    assert mixed[:3].tolist() == pytest.approx(want[:3].tolist(), rel=1e-5)


def test_negative_polarity_is_added_with_its_weight():
    objective = Objective(Config(model=ModelConfig(negative_weight=0.5)), [], CPU)
    losses = objective(
        ModelOutputs(positive=LOGITS, negative=LOGITS.flip(1)),
        torch.tensor([0, 2, 1]),
        torch.tensor([True, True, False]),
    )
    logs = LOGITS.log_softmax(1)
    by_hand = [-(logs[0, 0] + 0.5 * logs[0, 2]), -(logs[1, 2] + 0.5 * logs[1, 0]), 0.0]
    assert losses.tolist() == pytest.approx([float(x) for x in by_hand], rel=1e-6)


def test_contrastive_loss_refuses_accumulation() -> None:
    config = Config(train=TrainConfig(objective=Supervision.both, global_batch=8))
    assert split_batch(config, 2) == (4, 1)
    config.train.micro_batch = 2
    with pytest.raises(UserError, match=r"leave train\.micro_batch out \(a rank has 4 clips\)"):
        split_batch(config, 2)
    config.train.objective = Supervision.labels
    assert split_batch(config, 2) == (2, 2)
