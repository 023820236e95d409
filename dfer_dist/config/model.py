"""Settings of the model: the towers, the class texts, and what is trained."""

# ruff: noqa: RUF009 (setting() returns a dataclasses.field)

from __future__ import annotations

from dataclasses import dataclass

from dfer_dist.config.setting import Choice, setting

_DFER_CLIP = "DFER-CLIP: Zhao & Patras, BMVC 2023"
_FINECLIPER = "FineCLIPER: Chen et al., ACM MM 2024"
_LORA = "LoRA: Hu et al., ICLR 2022"


class TokenPosition(Choice):
    """Where the class text is placed among the context tokens."""

    end = "After all of them."
    middle = "Between their halves."
    front = "Before all of them."


class ClassText(Choice):
    """What the text tower reads for a class."""

    names = "The class name and a full stop."
    sentence = "'an expression of NAME.' (Radford et al., ICML 2021, section 3.1.4)."
    person = f"'a person with an expression of NAME' ({_FINECLIPER})."
    descriptions = f"A sentence, our own, about movements of the face (as in {_DFER_CLIP})."


class TextPolarity(Choice):
    """Whether texts of what a class is not are used too."""

    positive = "Compare a clip with what each class is."
    both = (
        "Compare it also with 'a person with an expression of no NAME', or with "
        f"model.negative_sentences ({_FINECLIPER})."
    )


class ImageTuning(Choice):
    """What is trained of the image tower."""

    all = f"All of it, with optim.lr_image ({_DFER_CLIP})."
    last = (
        "The last model.image_blocks blocks, the norm after them and the projection, "
        "with optim.lr_image (partial fine-tuning: He et al., CVPR 2022, section 4.3)."
    )
    norms = "All LayerNorms, with optim.lr_image (Zhao et al., ICLR 2024)."
    lora = f"Low-rank factors of every linear layer, with optim.lr_lora ({_LORA})."
    adapters = (
        "An adapter after the attention and one parallel to the MLP of each block, "
        f"with optim.lr_adapters ({_FINECLIPER}; AIM: Yang et al., ICLR 2023)."
    )
    none = "Nothing."


class TextTuning(Choice):
    """What is trained of the text tower."""

    frozen = f"Nothing ({_DFER_CLIP})."
    lora = f"Low-rank factors, with optim.lr_lora ({_LORA})."
    adapters = f"Adapters, others for each polarity, with optim.lr_adapters ({_FINECLIPER})."


class TemporalKind(Choice):
    """How the features of a clip's frames become one."""

    transformer = f"A transformer with a class token ({_DFER_CLIP}, section 3.2)."
    mean = "Their mean (CLIP4Clip: Luo et al., Neurocomputing 2022)."


class Head(Choice):
    """What turns the feature of a clip into logits."""

    text = "Its cosine with the features of class texts."
    linear = "A linear layer; the text tower is not used."


class HeadInit(Choice):
    """How the weight of head=linear begins."""

    zeros = "With zeros: all classes are equally likely."
    normal = "With numbers from a normal distribution of deviation 0.02, as in timm."
    text = "With the features of class texts (Wortsman et al., CVPR 2022, section 3)."


class TemporalPool(Choice):
    """Which output of the temporal transformer is the clip's feature."""

    cls = f"That of the class token ({_DFER_CLIP}, section 3.2)."
    mean = "The mean of those of the frames (global pooling of MAE: He et al., CVPR 2022)."


class Output(Choice):
    """What the logits of the classes mean."""

    softmax = "One class is right: probabilities add up to 1."
    sigmoid = (
        "Any number of classes may be right: each has a probability of its own, trained with "
        "binary cross-entropy. Outputs are the single classes of a set with compound ones."
    )


@dataclass
class ModelConfig:
    """The towers, the class texts, and what is trained."""

    backbone: str = setting(
        "ViT-B-32-quickgelu",
        "A model of open_clip with a ViT image tower, timm:NAME of a ViT of timm, videomae:NAME of "
        "a video tower, tiny, or a .json file of sizes; dfer backbones lists them.",
    )
    pretrained: str = setting(
        "openai",
        "Weights: a tag of open_clip or timm, main for those of a repository or folder, demo for "
        "tiny, a file, or none for random weights.",
    )
    head: Head = setting(Head.text, later=True)
    head_init: HeadInit = setting(HeadInit.zeros, later=True)
    output: Output = setting(Output.softmax, later=True)
    text: ClassText = setting(ClassText.descriptions)
    sentences: dict[str, list[str]] | None = setting(
        None,
        "One or more sentences for each class name; null uses model.text.",
        source="prompt ensembling: Radford et al., ICML 2021, section 3.1.4",
    )
    text_polarity: TextPolarity = setting(TextPolarity.positive)
    negative_sentences: dict[str, list[str]] | None = setting(
        None, "As model.sentences, for text_polarity=both; null says that it is no such expression."
    )
    negative_weight: float = setting(
        1.0, "Weight of negative texts in loss and logits; positive ones have 1.", at_least=0
    )
    context_tokens: int = setting(
        8,
        "Learned tokens around each sentence; 0 uses the sentences alone.",
        source="CoOp: Zhou et al., IJCV 2022",
        at_least=0,
    )
    class_specific: bool = setting(True, "Learn a context of its own for each class.")
    token_position: TokenPosition = setting(TokenPosition.end)
    image: ImageTuning = setting(ImageTuning.all)
    drop_path: float = setting(
        0.0,
        "Probability of dropping a residual branch of the image tower's last block for a clip; it "
        "falls linearly to 0 in the first block.",
        source="stochastic depth: Huang et al., ECCV 2016",
        at_least=0,
        below=1,
        later=True,
    )
    image_blocks: int = setting(2, "Number of blocks that image=last trains.", at_least=1)
    text_tower: TextTuning = setting(TextTuning.frozen)
    lora_rank: int = setting(8, "Rank of LoRA's factors.", source=_LORA, at_least=1)
    lora_alpha: float = setting(
        16.0, "LoRA's product is weighted with lora_alpha / lora_rank.", source=_LORA, above=0
    )
    adapter_ratio: float = setting(
        0.25, "Width of an adapter's bottleneck, as a share of the tower's width.", above=0
    )
    adapter_scale: float = setting(0.5, "Weight of the adapters parallel to the MLPs.", above=0)
    adapter_time: bool = setting(
        False,
        "For image=adapters: one more adapter in each block that attends from frame to frame.",
        source="AIM: Yang et al., ICLR 2023",
    )
    modalities: list[str] = setting(
        [],
        "What the model sees in addition to frames, for image=adapters: parsing, landmarks.",
        source=_FINECLIPER,
    )
    modality_ratio: float = setting(
        0.1, "As adapter_ratio, for the adapters of each modality in the image tower.", above=0
    )
    video_weight: float | None = setting(
        None,
        "Weight of the frames among the modalities, which share the rest; null learns all weights.",
        source=_FINECLIPER,
        at_least=0,
        at_most=1,
    )
    description_ratio: float = setting(
        0.0,
        "As adapter_ratio, for descriptions in the text tower; 0 shares the class texts' adapters.",
        source=_FINECLIPER,
        at_least=0,
    )
    temporal: TemporalKind = setting(TemporalKind.transformer)
    temporal_pool: TemporalPool = setting(TemporalPool.cls, later=True)
    temporal_layers: int = setting(1, "Layers of the temporal transformer.", at_least=1)
    temporal_heads: int = setting(8, "Attention heads of the temporal transformer.", at_least=1)
    temporal_head_dim: int = setting(64, "Width of each of these heads.", at_least=1)
    temporal_mlp: int = setting(1024, "Width of the temporal transformer's MLPs.", at_least=1)
    temperature: float | None = setting(
        0.01, "Logits are cosine / temperature; null takes scale and bias of the weights.", above=0
    )
    normalize: bool = setting(
        False,
        "Normalize pixels with the backbone's mean and deviation; the published recipe of "
        "DFER-CLIP uses [0, 1].",
    )
    checkpoint_image: bool = setting(
        False,
        "Recompute the image tower's activations in the backward pass.",
        source="Chen et al., 'Training Deep Nets with Sublinear Memory Cost', 2016",
        neutral=True,
    )
    checkpoint_temporal: bool = setting(
        True, "Recompute the temporal transformer's activations, likewise.", neutral=True
    )
