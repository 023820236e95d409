from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dfer_dist.config.load import dump_config, load_config, read_config
from dfer_dist.config.schema import (
    ClassText,
    Config,
    ImageTuning,
    ModelConfig,
    Optimizer,
    Schedule,
    TemporalKind,
    TextPolarity,
    TextTuning,
    config_hash,
    flatten,
)
from dfer_dist.data.sources.records import CLASSES
from dfer_dist.models.build import build_model
from dfer_dist.models.class_texts import DESCRIPTIONS, class_texts, polarity_texts
from dfer_dist.models.dferclip import DFERCLIP
from dfer_dist.models.prompt import tokenize
from dfer_dist.models.tokenizer import clip_tokenizer
from dfer_dist.models.tuning import param_groups
from dfer_dist.utils.errors import UserError
from tests.helpers.paths import ROOT

OWN = {"joy": ["a wide smile.", "lifted cheeks and a smile."], "fear": ["wide open eyes."]}


def tiny(
    sentences: dict[str, list[str]], classes: list[str] | None = None, **settings: object
) -> DFERCLIP:
    torch.manual_seed(0)
    cfg = ModelConfig(backbone="tiny", pretrained="none", sentences=sentences, **settings)
    return build_model(cfg, classes or list(sentences), 2, 64)


def load(tmp_path: Path, text: str, *overrides: str) -> Config:
    file = tmp_path / "mine.yaml"
    file.write_text("data: {shards: x}\n" + text)
    return load_config(str(file), overrides)


def test_what_the_text_tower_reads() -> None:
    for kind, fear in [
        (ClassText.names, "fear."),
        (ClassText.sentence, "an expression of fear."),
        (ClassText.descriptions, DESCRIPTIONS["fear"]),
    ]:
        assert class_texts(["fear", "anger"], kind)[0] == [fear]
        assert class_texts(["fear", "joy"], kind, OWN) == [OWN["fear"], OWN["joy"]], (
            "one's own win, in the classes' order"
        )
    assert ModelConfig().text is ClassText.descriptions


def test_compound_classes_read_as_plain_english() -> None:
    classes = ["anger", "disgust", "fear", "anger+disgust", "anger+disgust+fear", "a+b"]
    texts = class_texts(classes, ClassText.person)
    assert [own[0].partition(" of ")[2] for own in texts] == [
        *classes[:3],
        "anger and disgust",
        "anger, disgust and fear",
        # no compound of these classes
        "a+b",
    ]
    cfg = ModelConfig(text_polarity=TextPolarity.both)
    ((negative,),) = polarity_texts(classes[:5], cfg)["negative"][4:]
    assert negative.endswith(" an expression of no anger, disgust or fear")
    own = class_texts(classes[:4], ClassText.descriptions)
    assert own[3] == [f"{own[0][0][:-1]}; {own[1][0]}"]
    with pytest.raises(UserError, match="no description for class 'a\\+b'"):
        class_texts(classes, ClassText.descriptions)


def test_texts_of_mafws_compound_classes_fit_the_text_tower() -> None:
    classes = CLASSES["mafw-compound"]
    for kind in ClassText:
        texts = [own[0] for own in class_texts(classes, kind)]
        assert len(set(texts)) == 43
        # with DFER-CLIP's eight context tokens
        tokenize(texts, 8, clip_tokenizer())


def test_classes_must_be_those_of_the_data() -> None:
    with pytest.raises(
        UserError,
        match=r"class 'anger', 'awe': add model\.sentences\.anger=\[TEXT\]; name each of fear, anger",
    ):
        class_texts(["fear", "anger", "awe", "joy"], ClassText.names, OWN)
    with pytest.raises(UserError, match="'joy', no class of the data"):
        class_texts(["fear"], ClassText.names, OWN)
    with pytest.raises(UserError, match=r"no .* class 'awe': .* model\.sentences\.awe=\[TEXT\]"):
        class_texts(["fear", "awe"], ClassText.descriptions)


def test_sentence_features_are_averaged_and_normalized() -> None:
    model = tiny(OWN, class_specific=False)
    each = tiny({"a": OWN["joy"][:1], "b": OWN["joy"][1:], "c": OWN["fear"]}, class_specific=False)
    with torch.no_grad():
        each.load_state_dict(model.state_dict())
        a, b, c = each.text_features()
        joy, fear = model.text_features()
    torch.testing.assert_close(joy, F.normalize((a + b) / 2, dim=0), rtol=0, atol=1e-6)
    torch.testing.assert_close(fear, c, rtol=0, atol=1e-6)
    assert (a - b).abs().max() > 1e-3
    assert model(torch.zeros(1, 2, 3, 64, 64, dtype=torch.uint8)).shape == (1, 2)


def test_sentences_of_a_class_train_shared_context() -> None:
    model = tiny(OWN)
    prompts = model.prompt()
    assert model.prompt.context.shape == (2, 8, 64) and len(prompts) == 3
    assert torch.equal(prompts[0, 1:9], prompts[1, 1:9]) and not torch.equal(
        prompts[0, 1:9], prompts[2, 1:9]
    )
    grads = [
        torch.autograd.grad(model.prompt()[i, 1:9].sum(), model.prompt.context)[0] for i in range(3)
    ]
    assert [[bool(g[c].all()) for c in (0, 1)] for g in grads] == [
        [True, False],
        [True, False],
        [False, True],
    ]
    before = model.prompt.context.detach().clone()
    F.cross_entropy(
        model(torch.zeros(1, 2, 3, 64, 64, dtype=torch.uint8)), torch.tensor([0])
    ).backward()
    torch.optim.SGD([p for _, p in param_groups(model)["prompt"]], lr=0.1).step()
    assert all((model.prompt.context[c] != before[c]).any() for c in (0, 1))


def test_own_texts_change_prompts() -> None:
    classes = ["fear", "anger"]
    own, built_in = (
        tiny({c: [DESCRIPTIONS[c]] for c in reversed(classes)}, classes),
        tiny(None, classes),
    )
    assert torch.equal(own.text_features(), built_in.text_features())
    assert not torch.equal(
        tiny({c: [c] for c in classes}).text_features(), built_in.text_features()
    )


def test_a_sentence_that_is_too_long_is_named() -> None:
    with pytest.raises(UserError, match="shorten 'word word"):
        tiny({"a": ["fine.", "word " * 68]})
    assert tiny({"a": ["word " * 67]}).prompt.tokens.shape == (1, 77)


def test_sentences_of_experiment_are_kept_with_run(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "model: {sentences: {joy: [a wide smile., 'lifted cheeks and a smile.'], "
        "fear: [wide open eyes.]}}",
    )
    assert config.model.sentences == OWN
    assert flatten(config)["model.sentences"] == OWN
    (tmp_path / "config.yaml").write_text(dump_config(config))
    again = read_config(tmp_path / "config.yaml")
    assert again == config and config_hash(again) == config_hash(config)
    assert load(tmp_path, "", "model.sentences.joy=[a,b]").model.sentences == {"joy": ["a", "b"]}
    assert load(tmp_path, "model: {sentences: null}").model.sentences is None
    plain = load(tmp_path, "")
    one = load(tmp_path, "model: {sentences: {joy: [x]}}")
    other = load(tmp_path, "model: {sentences: {joy: [y]}}")
    assert len({config_hash(c) for c in (plain, one, other, config)}) == 4


def test_every_option_is_on_the_page_of_options() -> None:
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text()
    for kind in (
        ClassText,
        TextPolarity,
        ImageTuning,
        TextTuning,
        TemporalKind,
        Schedule,
        Optimizer,
    ):
        key = {
            ClassText: "model.text",
            TextPolarity: "model.text_polarity",
            ImageTuning: "model.image",
        }.get(kind)
        key = key or {TextTuning: "model.text_tower"}.get(kind)
        key = (
            key
            or {
                TemporalKind: "model.temporal",
                Schedule: "optim.schedule",
                Optimizer: "optim.name",
            }[kind]
        )
        assert [o.name for o in kind if f"`{key}={o.name}`" not in page] == []


def test_a_flat_tree_is_a_copy() -> None:
    config = Config()
    config.model.sentences = {"joy": ["a"]}
    flatten(config)["model.sentences"]["joy"].append("b")
    assert config.model.sentences == {"joy": ["a"]}


@pytest.mark.parametrize(
    "wrong",
    [
        "{fear: a sentence}",
        "[a, b]",
        "a sentence",
        "{fear: [[a]]}",
        "{fear: [null]}",
        "{fear: null}",
        "{1: [a]}",
        "{fear: {a: b}}",
        "{fear: []}",
        "{fear: [a, ' ']}",
    ],
)
def test_wrong_types_are_refused_in_one_line(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, f"model: {{sentences: {wrong}}}")
    assert "\n" not in str(caught.value)
    assert "model.sentences" in str(caught.value)


def test_other_keys_are_still_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean 'model\.sentences'"):
        load(tmp_path, "model: {sentence: {fear: [a]}}")
    with pytest.raises(UserError, match=r"unknown key 'data\.fear'"):
        load(tmp_path, "", "data.fear=[a]")
