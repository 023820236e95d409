"""Settings of training: the optimizer, the schedule and the loop."""

# ruff: noqa: RUF009 (setting() returns a dataclasses.field)

from __future__ import annotations

from dataclasses import dataclass

from dfer_dist.config.setting import Choice, setting

_FINECLIPER = "FineCLIPER: Chen et al., ACM MM 2024"


class Precision(Choice):
    """Number format of the forward and backward pass; master weights are float32."""

    bf16 = "bfloat16."
    fp16 = "float16 with a dynamic loss scale, for GPUs without bfloat16 (V100, T4)."
    fp32 = "float32."


class Selection(Choice):
    """Which epoch's weights are tested and reported."""

    last = "Those of the last epoch; the test fold is read once."
    best_val = "The best on a held-out part of the training folds."
    best_test = "The best on the test fold, as in the original papers."


class Optimizer(Choice):
    """The optimizer."""

    sgd = "SGD with momentum (Sutskever et al., ICML 2013)."
    adamw = "Adam with decoupled weight decay (Loshchilov & Hutter, ICLR 2019)."


class Schedule(Choice):
    """How learning rates fall."""

    step = "Times optim.gamma at each of optim.milestones (DFER-CLIP, section 4.1)."
    cosine = "Half a cosine after the warm-up (Loshchilov & Hutter, ICLR 2017, no restart)."


class Supervision(Choice):
    """What a training step learns from."""

    labels = "Cross-entropy with the class texts."
    descriptions = (
        "No labels: each clip against the descriptions of all clips of a step "
        "(InfoNCE as in CLIP: Radford et al., ICML 2021, section 2.3)."
    )
    both = f"The first plus train.description_weight times the second ({_FINECLIPER})."


class TargetKind(Choice):
    """What the labels' loss compares a clip with."""

    majority = "Its label, the class with most votes."
    votes = (
        "The distribution of its annotators' votes: cross-entropy, which is KL(votes || model) "
        "plus a constant (label distribution learning: Geng, TKDE 2016)."
    )


class Device(Choice):
    """Where to compute."""

    auto = "On GPUs if torch sees any."
    cpu = "On the processor."
    cuda = "On GPUs."


@dataclass
class OptimConfig:
    """The optimizer and the schedule of learning rates."""

    name: Optimizer = setting(Optimizer.sgd)
    momentum: float = setting(0.9, "Momentum of SGD.", at_least=0)
    betas: list[float] = setting(
        [0.9, 0.999],
        "AdamW's decay rates of the mean and the mean square of gradients.",
        source="Adam: Kingma & Ba, ICLR 2015",
        later=True,
    )
    weight_decay: float = setting(1e-4, "Weight decay of every group.", at_least=0)
    decay_all: bool = setting(
        True,
        "Decay norms, biases, positions, class tokens and layer scales too.",
        source="false as in BEiT: Bao et al., ICLR 2022",
        later=True,
    )
    layer_decay: float = setting(
        1.0,
        "Factor of lr_image from one block of the image tower to the one before it; 1 is off.",
        above=0,
        at_most=1,
        source="BEiT: Bao et al., ICLR 2022; MAE: He et al., CVPR 2022, appendix A.1",
        later=True,
    )
    lr_image: float = setting(1e-5, "Learning rate of the image tower.", at_least=0)
    lr_temporal: float = setting(1e-2, "Learning rate of the temporal transformer.", at_least=0)
    lr_prompt: float = setting(1e-3, "Learning rate of the context tokens.", at_least=0)
    lr_head: float = setting(1e-3, "Learning rate of model.head=linear.", at_least=0, later=True)
    lr_lora: float = setting(1e-4, "Learning rate of LoRA's factors.", at_least=0)
    lr_adapters: float = setting(3e-4, "Learning rate of adapters.", at_least=0)
    schedule: Schedule = setting(Schedule.step)
    milestones: list[int] = setting([30, 40], "Epochs, counted from the start of training.")
    min_lr: float = setting(
        0.0,
        "Learning rate at which the cosine ends, before layer_decay.",
        at_least=0,
        source="SGDR: Loshchilov & Hutter, ICLR 2017, equation 5",
        later=True,
    )
    gamma: float = setting(0.1, "Factor of the learning rates at each milestone.", at_least=0)
    clip_norm: float = setting(
        0.0, "Largest 2-norm of the whole gradient; 0 turns clipping off.", at_least=0
    )
    warmup_epochs: float = setting(
        0.0,
        "Epochs over which learning rates rise linearly to their peak.",
        at_least=0,
        source="Goyal et al., 2017, section 2.2",
    )

    @property
    def moments(self) -> tuple[str, ...]:
        """Names that torch gives to the optimizer's moments."""
        if self.name is Optimizer.adamw:
            return "exp_avg", "exp_avg_sq"
        return ("momentum_buffer",) if self.momentum else ()


@dataclass
class TrainConfig:
    """The training loop: batches, precision, loss, checkpoints."""

    epochs: int = setting(50, "Number of epochs.", at_least=1)
    global_batch: int = setting(48, "Clips in one optimizer step, over all ranks.", at_least=1)
    micro_batch: int | None = setting(
        None, "Clips in a forward pass; null is global_batch / ranks.", at_least=1, neutral=True
    )
    precision: Precision = setting(Precision.bf16)
    zero_stage: int = setting(
        1,
        "DeepSpeed ZeRO: 1 shards optimizer states, 2 gradients too, 3 weights too.",
        at_least=1,
        at_most=3,
        source="ZeRO: Rajbhandari et al., SC 2020",
        neutral=True,
    )
    offload_optimizer: bool = setting(
        False,
        "Keep master weights and moments in main memory, and update them on the processor.",
        source="ZeRO-Offload: Ren et al., USENIX ATC 2021",
        neutral=True,
    )
    # as many bits as torch takes
    seed: int = setting(0, "Seed of all random numbers.", at_least=0, below=2**64)
    objective: Supervision = setting(Supervision.labels)
    description_weight: float = setting(
        1.0, "Weight of the descriptions' loss; the labels' loss has 1.", above=0
    )
    target: TargetKind = setting(TargetKind.majority, later=True)
    label_smoothing: float = setting(
        0.0,
        "Share of the target that is spread over all classes.",
        at_least=0,
        below=1,
        source="Szegedy et al., CVPR 2016, section 7",
    )
    class_balance: float = setting(
        0.0,
        "Beta of the class-balanced loss, such as 0.999; 0 weighs all clips alike.",
        at_least=0,
        below=1,
        source="Cui et al., CVPR 2019, equation 6",
    )
    ema: float = setting(
        0.0,
        "Decay of a moving average of the weights, such as 0.9999, which is tested and exported; "
        "0 is off.",
        at_least=0,
        below=1,
        source="Polyak & Juditsky, SIAM J. Control Optim. 1992; ModelEmaV3 of timm",
        later=True,
    )
    selection: Selection = setting(Selection.last)
    val_fraction: float = setting(
        0.1, "Part of the training folds held out for selection=best_val.", above=0, below=1
    )
    max_bad_steps: int = setting(
        5, "Skipped (not finite) steps in a row that end the run.", at_least=1, neutral=True
    )
    save_epochs: int = setting(
        1, "Write a checkpoint every so many epochs, and after the last.", at_least=1, neutral=True
    )
    save_minutes: float = setting(
        10.0, "Write a checkpoint at least this often.", above=0, neutral=True
    )
    save_steps: int | None = setting(
        None, "Write a checkpoint every so many steps, too.", at_least=1, neutral=True
    )
    keep: int = setting(
        2, "Checkpoints that are kept in addition to LATEST and BEST.", at_least=1, neutral=True
    )
    log_every: int = setting(
        1, "Steps from one line of metrics.jsonl to the next.", at_least=1, neutral=True
    )
    print_every: int = setting(
        10, "Steps from one line of the log to the next.", at_least=1, neutral=True
    )
    profile: int = setting(
        0,
        "Steps of rank 0 that torch's profiler traces, after three others; 0 traces none.",
        at_least=0,
        neutral=True,
    )
    hang_minutes: float = setting(
        15.0, "Minutes without a step or test batch that end a rank.", above=0, neutral=True
    )
    device: Device = setting(Device.auto, neutral=True)
