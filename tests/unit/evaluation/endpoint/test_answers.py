"""Which class an answer of a vision model names."""

from __future__ import annotations

import pytest

from dfer_dist.data.captions.endpoint import Completion
from dfer_dist.evaluation.endpoint.answers import answered_class, system_prompt
from dfer_dist.runs.endpoint import REFUSED, UNREADABLE
from dfer_dist.utils.errors import UserError

CLASSES = ("happiness", "sadness", "anger", "anger_disgust", "disgust")

ANSWERS = {
    '{"class": "happiness"}': "happiness",
    '{"class": "Happiness ", "reason": "no sadness"}': "happiness",
    '```json\n{"class": "sadness"}\n```': "sadness",
    '"anger"': "anger",
    " **Anger**.\n": "anger",
    "The expression is happiness.": "happiness",
    "The person's emotion: sadness": "sadness",
    "**Final answer:** anger_disgust": "anger_disgust",
    "class: Sadness": "sadness",
    # reasoning
    "<think>sadness? anger? no, not these</think>happiness": "happiness",
    "sadness? no.\n</think>\n\nhappiness": "happiness",
    "<think>sadness</think> anger? </THINK >happiness": "happiness",
    '<thinking>sadness</thinking>```\n{"class": "happiness"}\n```': "happiness",
    "<Think>sadness": UNREADABLE,
    "<think>I cannot tell sadness from": UNREADABLE,
    '<think>sadness</think><thinking>{"class": "anger"}': UNREADABLE,
    '{"class": "anger"}<think>or': UNREADABLE,
    "anger</think>": UNREADABLE,
    "anger-disgust": "anger_disgust",
    '{"class": "anger disgust"}': "anger_disgust",
    # names no class
    "": UNREADABLE,
    "The brows rise.": UNREADABLE,
    "unhappiness": UNREADABLE,
    "happy": UNREADABLE,
    '{"class": "joy"}': UNREADABLE,
    '{"class": null}': UNREADABLE,
    '{"class": ["sadness"]}': UNREADABLE,
    '{"class": "not sadness"}': UNREADABLE,
    'Here it is: {"class": "sadness"}': UNREADABLE,
    '{"class": ["sadness", "anger"]}': UNREADABLE,
    '{"emotion": "sadness"}': UNREADABLE,
    # several, or none of them
    "happiness or sadness": UNREADABLE,
    "happiness, sadness": UNREADABLE,
    '{"class": "happiness, sadness"}': UNREADABLE,
    "This is not happiness.": UNREADABLE,
    "It isn't anger": UNREADABLE,
    "It could be anything but anger": UNREADABLE,
    "Rather than anger": UNREADABLE,
    "The face lacks anger": UNREADABLE,
    "The expression is hardly anger": UNREADABLE,
    "Not the expression is anger": UNREADABLE,
    "I see a smile, so happiness.": UNREADABLE,
    # a refusal as text
    "I'm sorry, but I can't help with that.": REFUSED,
    "Sorry, I cannot identify emotions such as happiness.": REFUSED,
    "I am unable to do so": REFUSED,
    "I'm unable to tell whether this is anger.": REFUSED,
    "I decline to label anger": REFUSED,
    "Unfortunately I am unable to identify emotions such as anger": REFUSED,
    "I am sorry, I am unable to say if it is happiness": REFUSED,
    "Anger? I can\u2019t say.": REFUSED,
    "As an AI, I do not judge faces.": REFUSED,
    "I cannot see well, perhaps: happiness or anger": REFUSED,
}


@pytest.mark.parametrize("text", ANSWERS)
def test_answer_names_one_class_or_none(text: str) -> None:
    assert answered_class(Completion(text), CLASSES) == ANSWERS[text]


def test_refusal_of_the_server_is_refused_whatever_it_says() -> None:
    assert answered_class(Completion("happiness", refused=True), CLASSES) == REFUSED


def test_prompt_lists_classes_that_answers_can_tell_apart() -> None:
    assert "happiness, sadness, anger" in system_prompt(CLASSES[:3])
    with pytest.raises(UserError, match="Fear, fear"):
        system_prompt(("anger", "Fear", "fear"))
