"""Pretraining of the demo CLIP: captions, pairs, the recipe and the shipped file."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from dfer_dist.config.schema import ModelConfig
from dfer_dist.demo import captions as facewords
from dfer_dist.demo.captions import MOVEMENTS, STILL, TEMPLATES, describe, draw_person, draw_units
from dfer_dist.demo.dataset import plan_demo
from dfer_dist.demo.face_parts import AUS
from dfer_dist.demo.faces import RENDERER
from dfer_dist.demo.pretrain import SIZE, THREADS, Pairs, Recipe, contrast, pretrain, save_clip
from dfer_dist.models.backbone import SHIPPED, find_weights, load_backbone
from dfer_dist.models.build import build_model
from dfer_dist.models.class_texts import DESCRIPTIONS
from dfer_dist.models.towers.open_clip_models import build_clip, clip_config
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import sha256_file
from tests.helpers.paths import ROOT

FILE = SHIPPED["tiny", "demo"]
SHORT = replace(Recipe(), people=12, frames=4, captions=2, epochs=40, batch=24, lr=1e-3)
FEELING = (
    "happ|sad|neutral|ang|surpris|disgust|fear|afraid|contempt|anxi|helpless|disappoint|joy|"
    "emotion|feel"
)


def units(**values: float) -> np.ndarray:
    return np.array([values.get(name, 0.0) for name in AUS], np.float32)


def said(text: str) -> set[str]:
    """The movements in a caption that are there, each by its phrase."""
    phrases = {phrase for own in MOVEMENTS.values() for phrase in own}
    text = re.sub(r"\bno [\w ]+", "", text)
    return {
        phrase
        for phrase in phrases
        if re.search(rf"(?:^|with |of |, |and ){phrase}(?:$|[.,]| and)", text)
    }


def test_nobody_in_the_pretraining_is_in_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(
        facewords, "render_units", lambda units, identity, *_: [drawn.append(identity)]
    )
    for number in range(200):
        draw_person(number, 0, 2, 1, 64)
    assert len(set(drawn)) == 200
    assert set(drawn).isdisjoint(
        clip.identity for seed in range(3) for clip in plan_demo(700, seed)
    )


def test_no_caption_names_an_emotion_or_is_a_class_text() -> None:
    rng = np.random.default_rng(0)
    texts = {describe(row, rng) for row in draw_units(3000, rng)}
    assert len(texts) > 2500
    assert not [text for text in texts if re.search(rf"\b(?:{FEELING})", text)]
    assert texts.isdisjoint(DESCRIPTIONS.values())


def test_captions_use_each_term_of_the_demo_s_class_texts() -> None:
    rng = np.random.default_rng(0)
    terms = {
        word for row in draw_units(3000, rng) for word in re.findall(r"\w+", describe(row, rng))
    }
    demo = [
        text
        for name, text in DESCRIPTIONS.items()
        if name in {"happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear"}
    ]
    assert len(demo) == 7 and set(re.findall(r"\w+", " ".join(demo))) <= terms


def test_a_caption_says_what_is_there_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    smile = {"lip corners pulled up and back", "lip corners drawn up", "a wide smile"}
    texts = [describe(units(AU12=0.9, AU7=0.2), rng) for _ in range(300)]
    assert set().union(*map(said, texts)) == smile
    assert not [
        text for text in texts if re.search("no (lip corners (pulled|drawn) up|wide smile)", text)
    ]
    assert not [text for text in texts if "at rest" in text and "mouth" in text]
    still = {phrase for own in STILL.values() for phrase in own} | set(facewords.AT_REST)
    texts = [describe(units(), rng) for _ in range(100)]
    assert not [text for text in texts if not any(phrase in text for phrase in still) or said(text)]
    both = set().union(*(said(describe(units(AU1=1, AU2=1, AU4=0.5), rng)) for _ in range(100)))
    assert both == {"brows raised and drawn together", "brows up and pinched in the middle"}


def test_units_are_independent_without_conflicts() -> None:
    seen = draw_units(20000, np.random.default_rng(0)) >= facewords.VISIBLE
    for one, other in facewords.NEVER_TOGETHER:
        assert not (seen[:, AUS.index(one)] & seen[:, AUS.index(other)]).any()
    assert 0.08 < (~seen.any(1)).mean() < 0.2
    assert seen.mean(0).min() > 0.1  # each is there often enough to be learned
    assert len({row.tobytes() for row in seen}) > 5000  # and no combination is preferred


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return Pairs(SHORT, workers=1)


def test_pairs_match_frames_with_their_captions(pairs: Pairs) -> None:
    third = draw_person(3, SHORT.seed, SHORT.frames, SHORT.captions, SIZE)
    assert pairs.frames.shape == (48, 3, SIZE, SIZE) and pairs.frames.dtype == torch.uint8
    assert np.array_equal(pairs.frames[12:16].permute(0, 2, 3, 1).numpy(), third.frames)
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    ids = pairs.vocabulary[pairs.tokens[12, 1].long()].tolist()
    assert ids[0] == tokenizer.sot_token_id
    assert tokenizer.decode(ids[1 : ids.index(tokenizer.eot_token_id)]).split() == re.findall(
        r"\w+|[.,]", third.captions[0][1]
    )


def test_the_same_recipe_gives_the_same_bytes(pairs: Pairs, tmp_path: Path) -> None:
    recipe = replace(SHORT, epochs=8)
    threads = torch.get_num_threads()
    for name in ("a", "b"):
        # The number of threads is not part of the recipe.
        torch.set_num_threads(1 if name == "a" else 2)
        torch.manual_seed(len(name))
        clip, _ = pretrain(recipe, pairs)
        save_clip(clip, recipe, tmp_path / name)
    assert torch.get_num_threads() == 2 and not torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_pretraining_learns_and_depends_on_the_seed(pairs: Pairs) -> None:
    _, losses = pretrain(SHORT, pairs)
    assert len(losses) == 80
    assert sum(losses[-4:]) / 4 < 0.5 * np.log(SHORT.batch) < losses[0]
    one_epoch = replace(SHORT, epochs=1)
    ours, theirs = (pretrain(replace(one_epoch, seed=seed), pairs)[0] for seed in (0, 1))
    assert not torch.equal(ours.visual.proj, theirs.visual.proj)


def test_tokens_of_no_caption_keep_their_embedding(pairs: Pairs) -> None:
    clip, _ = pretrain(replace(SHORT, epochs=1), pairs)
    with torch.random.fork_rng():
        torch.manual_seed(SHORT.seed)
        start = build_clip(clip_config("tiny"), SIZE).token_embedding.weight
    moved = (clip.token_embedding.weight != start).any(1)
    assert moved[pairs.vocabulary].sum() >= len(pairs.vocabulary) - 1  # zero only fills
    assert moved.sum() == moved[pairs.vocabulary].sum()


def test_contrast_is_the_mean_of_both_cross_entropies() -> None:
    image, text = (
        torch.nn.functional.normalize(
            torch.randn(5, 8, generator=torch.Generator().manual_seed(s)), dim=1
        )
        for s in (0, 1)
    )
    cosines = (4.0 * image @ text.t()).double().exp()
    expected = (
        -sum(
            torch.log(cosines[i, i] / cosines[i].sum())
            + torch.log(cosines[i, i] / cosines[:, i].sum())
            for i in range(5)
        )
        / 10
    )
    assert float(contrast(image, text, torch.tensor(4.0).log())) == pytest.approx(
        float(expected), rel=1e-5
    )


def test_shipped_file_is_documented_and_of_this_recipe() -> None:
    assert FILE.stat().st_size < 5_000_000
    assert sha256_file(FILE) in (ROOT / "docs" / "models" / "demo-clip.md").read_text("utf-8")
    with safe_open(FILE, "pt") as f:
        made = json.loads(f.metadata()["recipe"])
    assert {k: v for k, v in made.items() if k != "torch"} == vars(Recipe()) | {
        "renderer": RENDERER,
        "threads": THREADS,
    }


def test_shipped_file_loads_by_name_with_open_clip_keys() -> None:
    backbone = load_backbone("tiny", "demo", SIZE)
    image, text = backbone.image, backbone.text
    assert backbone.sha256 == sha256_file(FILE)
    with safe_open(FILE, "pt") as f:
        assert set(f.keys()) == set(build_clip(clip_config("tiny"), SIZE).state_dict())
        assert torch.equal(image.conv1.weight, f.get_tensor("visual.conv1.weight"))
        assert torch.equal(
            text.token_embedding.weight, f.get_tensor("token_embedding.weight").float()
        )
    assert load_backbone("tiny", "demo", 32).image.positional_embedding.shape == (5, 64)
    with pytest.raises(UserError, match="one of demo, a weights file or none"):
        find_weights("tiny", "openai")
    with pytest.raises(
        UserError, match="'demo' is neither published weights of ViT-B-32-quickgelu nor a file"
    ):
        find_weights("ViT-B-32-quickgelu", "demo")


def test_shipped_clip_tells_movements_on_people_it_never_saw() -> None:
    """Choose among sixteen sentences with one movement each; chance is one in sixteen."""
    moves = [
        (needed, own)
        for (needed, without), own in MOVEMENTS.items()
        if not without and " " not in needed
    ]
    moves += [("AU1 AU2", ("brows lifted high",)), ("AU4", ("brows pulled down and together",))]
    texts = {needed: [TEMPLATES[0].format(own[0])] for needed, own in moves}
    cfg = ModelConfig(
        backbone="tiny", pretrained="demo", sentences=texts, context_tokens=0, normalize=True
    )
    model = build_model(cfg, list(texts), 1, SIZE)
    rows = np.stack([units(**dict.fromkeys(needed.split(), 0.9)) for needed in texts])
    right = []
    for number in range(25):
        rng = np.random.default_rng([99, number])
        frames = facewords.render_units(
            rows, facewords.PEOPLE_FROM + Recipe().people + number, rng, SIZE
        )[0]
        with torch.no_grad():
            pixels = model._preprocess(torch.from_numpy(frames).permute(0, 3, 1, 2))
            cosines = (
                torch.nn.functional.normalize(model.image(pixels), dim=-1)
                @ model.text_features().t()
            )
        right.append((cosines.argmax(1) == torch.arange(len(rows))).float().mean().item())
    assert np.mean(right) > 5 / len(rows)
