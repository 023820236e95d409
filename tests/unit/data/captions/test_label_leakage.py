"""Label words are found in every form, and descriptions stay sentences without them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfer_dist.data.captions.label_leakage import WORDS, clean, label_words
from dfer_dist.data.sources.records import ELEVEN

FORMS = (
    "happy happily happier happiness joy joyful gladly cheerful delighted amused pleased sad "
    "sadly saddened sadness sorrowful grief grieving neutral neutrally expressionless calm "
    "anger angry angrily angered furious irritated annoyance rage surprise surprised "
    "surprisingly astonishment amazed shocked startled disgust disgusted disgusting revulsion "
    "nauseated fear fearful fears afraid frightened scared terrified horrified horror "
    "contempt contemptuous contemptuously scornful disdain mocking anxiety anxious anxiously "
    "nervous worried worry uneasy helpless helplessness helplessly powerless despairing "
    "disappointment disappointed disappointing dismayed regretful"
)


def test_label_words_cover_every_class() -> None:
    assert tuple(WORDS) and set(WORDS) == set(ELEVEN)
    assert [label_words(name) for name in ELEVEN] == [[name] for name in ELEVEN]


@pytest.mark.parametrize("word", FORMS.split())
def test_label_words_finds_forms_in_any_case_and_punctuation(word: str) -> None:
    for text in (
        word,
        word.upper(),
        f"({word})",
        f"_{word}_",
        f"half-{word}",
        f"{word}'s",
        f"The brows show {word}, then fall.",
    ):
        assert [found.lower() for found in label_words(text)] == [word]


@pytest.mark.parametrize(
    "text",
    [
        "The angle of the mouth changes behind a blanket.",
        "She smiles, then laughs with tears and a frown, and pouts.",
        "A stranger in danger wears dreadlocks and has a scar on the left cheek.",
        "The lips are tense and the present display hangs; a hanger, a manger, a ledger.",
        "The made-up eyes close.",
    ],
)
def test_clean_keeps_other_words(text: str) -> None:
    assert label_words(text) == []
    assert clean(text) == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (
            "The brows rise. The face looks surprised. The mouth opens.",
            "The brows rise. The mouth opens.",
        ),
        ("The brows rise and stay high, suggesting surprise.", "The brows rise and stay high."),
        (
            "The brows rise and stay high, which may be a sign of mild surprise or fear, or joy.",
            "The brows rise and stay high.",
        ),
        ("The eyes widen and stare ahead as if in fear.", "The eyes widen and stare ahead."),
        ("The lips press together tightly in anger.", "The lips press together tightly."),
        ("The lips press together tightly (possibly anger).", "The lips press together tightly."),
        ("The lips press together tightly — perhaps annoyed.", "The lips press together tightly."),
        ("The whole of his face is showing anger.", ""),
        ("The man with the angry brows opens his mouth.", ""),
        ("Angry brows come down and the lips part.", ""),
        (
            "The brows come down; the face is angry; the lips part.",
            "The brows come down; the lips part.",
        ),
        (
            "1. **Brows:** they rise.\n2. **Emotion:** surprise\n- The jaw drops",
            "Brows: they rise. The jaw drops",
        ),
        ("<think>He is angry. His brows fall.</think>The brows fall.", "The brows fall."),
        ("She is happy.", ""),
        ("", ""),
        ("眉头紧蹙，嘴角下拉。他很愤怒。眼睛睁大。", "眉头紧蹙，嘴角下拉。 眼睛睁大。"),
    ],
)
def test_clean_cuts_interpretations_or_drops_sentences(text: str, left: str) -> None:
    assert clean(text) == left


def test_clean_removes_class_names_of_a_folder_set() -> None:
    text = "The eyes close in pain. The lips part. A painful look. The no-pain face."
    assert clean(text, ("pain", "other")) == "The lips part."
    assert clean(text, ("no_pain",)) == "The eyes close in pain. The lips part. A painful look."


PIECES = st.sampled_from(
    [
        "The brows rise",
        "slowly",
        ",",
        ".",
        ";",
        " and",
        "in",
        "with",
        "suggesting",
        "which shows",
        "(",
        ")",
        "—",
        "\n",
        "- ",
        "The lips part",
        *FORMS,
    ]
)


@given(st.lists(PIECES, max_size=30))
def test_clean_never_leaves_a_label_word(pieces: list[str]) -> None:
    left = clean(" ".join(pieces))
    assert label_words(left) == []
    assert clean(left) == left
