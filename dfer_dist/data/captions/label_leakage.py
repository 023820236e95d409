"""Words that give an expression's label away, and descriptions without them.

A description is meant to say what the face does; if it names the emotion, a model learns to read the label. The words are those of the
eleven classes of MAFW, which hold the seven of DFEW, FERV39k and the demo, with their synonyms; for every data set all of them, since a
model may be trained on one set's descriptions and tested on another. What a face does (smile, frown, tears, laugh, pout) stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

WORDS = {  # of each class; a star stands for any further letters
    "happiness": "happ[yi]* glad* joy* cheer* merr[yi]* delight* pleas* amus* enjoy* glee* bliss* elat* ecsta* euphor* jubil* jolly jovial* "
    "thrill* excit* content contented* contentment upbeat positive positively positivity",
    "sadness": "sad sadd* sadly sadness* sorrow* grie[fv]* gloom* melanchol* mourn* unhapp* depressed depressing depression miser[yai]* "
    "deject* despond* heartbr* heartache* woe woeful* wistful* anguish* lament*",
    "neutral": "neutral* expressionless* emotionless* unemotional* blank blankly blankness impassive* calm* placid* seren[ei]* indifferen* deadpan* stoic* "
    "composed composure apath* nonchalan* unexpressive* inexpressive*",
    "anger": "anger* angry angri* irritat* annoy* furious* fury furies rage rages raged raging enrag* outrag* wrath* irate* mad madly "
    "madness madden* hostil* indign* resent* aggress* infuriat* exasperat* frustrat* livid* displeas* negative negatively negativity",
    "surprise": "surpris* astonish* amaz* shock* startl* stun stuns stunn* astound* bewilder* dumbfound* awe awed awestruck incredul* disbelie* flabbergast*",
    "disgust": "disgust* repuls* revuls* revolt* repugn* nause* avers* distast* loath* abhor* sicken*",
    "fear": "fear* afraid* fright* scare* scaring scary terrif* terror* horr[io]* dread dreads dreaded dreading dreadful* panic* alarm* apprehens* petrif* timid*",
    "contempt": "contempt* scorn* disdain* deris* mock* condescend* despis* haught* smug*",
    "anxiety": "anxi* nervous* worr[yi]* uneas* stress* agitat* fret frets frett* fretful* jitter* concern* restless* distress* upset* angst*",
    "helplessness": "helpless* powerless* hopeless* despair* desperat* resigned* resignation* defeated* defeatis* vulnerab* overwhelm* futil*",
    "disappointment": "disappoint* dismay* letdown* disillusion* dissatisf* discontent* dishearten* crestfallen* regret* disenchant*",
}
CHINESE = (  # parts of words: Chinese has no spaces between words
    "高兴 开心 快乐 愉快 喜悦 欢喜 欣喜 幸福 兴奋 悲 伤心 难过 哀 忧 沮丧 中性 平静 面无表情 冷漠 愤 生气 恼 怒 气愤 惊讶 惊奇 惊喜 "
    "吃惊 震惊 诧异 错愕 厌恶 恶心 反感 嫌弃 害怕 恐惧 恐慌 惊恐 惊吓 畏惧 轻蔑 蔑视 鄙视 不屑 焦虑 焦急 紧张 不安 担心 着急 "
    "无助 无奈 绝望 失望 失落 遗憾"
)

_VERBS = "suggest|indicat|convey|express|show|reflect|imply|hint|signal|signall|reveal|display|portray|denot|evok|giv|creat|communicat"
_OPENER = re.compile(  # what begins an interpretation, with the comma or dash before it
    rf"[\s,:(–—-]+(?:(?:{_VERBS})ing|which|that|as (?:if|though)|possibly|perhaps|probably|likely|maybe|apparently|seemingly|"
    r"consistent|typical|characteristic|in|with)(?![A-Za-z])",
    re.IGNORECASE,
)
_LEAST = 4  # words without which the rest of a sentence says nothing
_DANGLING = re.compile(
    r"(?<![A-Za-z])(?:is|are|was|were|be|been|being|an?|the|of|and|or|but|in|with|to|by|at|as|for|from|if|though|while|then|more|very|most|"
    r"seems?|looks?|appears?|becom(?:es?|ing)|remains?|looking|seeming|appearing)$",
    re.IGNORECASE,
)
_THOUGHT = re.compile(
    r"<think>.*?</think>", re.DOTALL
)  # some servers hand out what a model says to itself
_MARKS = re.compile(r"^\s*(?:[-*•#>]+|\d+[.)])\s+|[*_`#]+", re.MULTILINE)  # Markdown
_SENTENCE = re.compile(r"(?<=[.!?;。！？；])(?:[\"'”’)]*)(?:\s+|(?<=[。！？；]))|\n+")


def label_words(text: str, classes: Iterable[str] = ()) -> list[str]:
    """Words in ``text`` that give a label away, as they stand there, in order. ``classes`` adds a data set's own, with any ending."""
    return [match[0] for match in _pattern(tuple(classes)).finditer(text)]


def clean(text: str, classes: Iterable[str] = ()) -> str:
    """A description without label words, and without Markdown; empty if nothing is left.

    Of a sentence with a label word, an interpretation at its end is cut off ("The brows rise, suggesting surprise." becomes "The brows
    rise."): from the last of some openings (suggesting, which, as if, in, with, …) before the word, provided that four words are left which do
    not break off in the middle. Any other sentence with a label word goes as a whole: a sentence with a hole in it is none. A semicolon
    ends a sentence.
    """
    pattern = _pattern(tuple(classes))
    kept = (
        _without(sentence.strip(), pattern)
        for sentence in _SENTENCE.split(_MARKS.sub("", _THOUGHT.sub(" ", text)))
    )
    return " ".join(" ".join(sentence for sentence in kept if sentence).split())


def _without(sentence: str, pattern: re.Pattern[str]) -> str:
    word = pattern.search(sentence)
    if not word:
        return sentence
    for opener in reversed(list(_OPENER.finditer(sentence, 0, word.start()))):
        head = sentence[: opener.start()].rstrip(" ,:;–—-(")
        if len(head.split()) >= _LEAST and not _DANGLING.search(head):
            return f"{head}."
    return ""


@lru_cache
def _pattern(classes: tuple[str, ...]) -> re.Pattern[str]:
    words = [word for line in WORDS.values() for word in line.split()]
    own = [
        r"[\W_]+".join(map(re.escape, filter(None, re.split(r"[\W_]+", name)))) for name in classes
    ]
    stems = [word.replace("*", "[a-z]*") for word in words] + [
        f"{name}[a-z]*" for name in own if name
    ]
    return re.compile(
        rf"(?<![a-z])(?:{'|'.join(stems)})(?![a-z])|{'|'.join(CHINESE.split())}", re.IGNORECASE
    )
