"""Removal of label words, which give an expression's label away, from descriptions.

A description should say what the face does; if it names the emotion, a model learns to read the
label. The words are those of MAFW's eleven classes, which include the seven of DFEW, FERV39k and
the demo, with their synonyms. All of them are removed for every data set, since a model may be
trained on one set's descriptions and tested on another. What a face does (smile, frown, tears,
laugh, pout) is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

# Words of each class; a star matches any further letters.
WORDS = {
    "happiness": (
        "happ[yi]* glad* joy* cheer* merr[yi]* delight* pleas* amus* enjoy* glee* bliss* elat* "
        "ecsta* euphor* jubil* jolly jovial* thrill* excit* content contented* contentment "
        "upbeat positive positively positivity"
    ),
    "sadness": (
        "sad sadd* sadly sadness* sorrow* grie[fv]* gloom* melanchol* mourn* unhapp* depressed "
        "depressing depression miser[yai]* deject* despond* heartbr* heartache* woe woeful* "
        "wistful* anguish* lament*"
    ),
    "neutral": (
        "neutral* expressionless* emotionless* unemotional* blank blankly blankness impassive* "
        "calm* placid* seren[ei]* indifferen* deadpan* stoic* composed composure apath* "
        "nonchalan* unexpressive* inexpressive*"
    ),
    "anger": (
        "anger* angry angri* irritat* annoy* furious* fury furies rage rages raged raging "
        "enrag* outrag* wrath* irate* mad madly madness madden* hostil* indign* resent* "
        "aggress* infuriat* exasperat* frustrat* livid* displeas* negative negatively "
        "negativity"
    ),
    "surprise": (
        "surpris* astonish* amaz* shock* startl* stun stuns stunn* astound* bewilder* "
        "dumbfound* awe awed awestruck incredul* disbelie* flabbergast*"
    ),
    "disgust": (
        "disgust* repuls* revuls* revolt* repugn* nause* avers* distast* loath* abhor* sicken*"
    ),
    "fear": (
        "fear* afraid* fright* scare* scaring scary terrif* terror* horr[io]* dread dreads "
        "dreaded dreading dreadful* panic* alarm* apprehens* petrif* timid*"
    ),
    "contempt": "contempt* scorn* disdain* deris* mock* condescend* despis* haught* smug*",
    "anxiety": (
        "anxi* nervous* worr[yi]* uneas* stress* agitat* fret frets frett* fretful* jitter* "
        "concern* restless* distress* upset* angst*"
    ),
    "helplessness": (
        "helpless* powerless* hopeless* despair* desperat* resigned* resignation* defeated* "
        "defeatis* vulnerab* overwhelm* futil*"
    ),
    "disappointment": (
        "disappoint* dismay* letdown* disillusion* dissatisf* discontent* dishearten* "
        "crestfallen* regret* disenchant*"
    ),
}
# Parts of words: Chinese has no spaces between words.
CHINESE = (
    "高兴 开心 快乐 愉快 喜悦 欢喜 欣喜 幸福 兴奋 悲 伤心 难过 哀 忧 沮丧 中性 平静 面无表情 冷漠 "
    "愤 生气 恼 怒 气愤 惊讶 惊奇 惊喜 吃惊 震惊 诧异 错愕 厌恶 恶心 反感 嫌弃 害怕 恐惧 恐慌 惊恐 "
    "惊吓 畏惧 轻蔑 蔑视 鄙视 不屑 焦虑 焦急 紧张 不安 担心 着急 无助 无奈 绝望 失望 失落 遗憾"
)

_VERBS = (
    "suggest|indicat|convey|express|show|reflect|imply|hint|signal|signall|reveal|display|portray|"
    "denot|evok|giv|creat|communicat"
)
# The start of an interpretation, with the comma or dash before it.
_OPENER = re.compile(
    rf"[\s,:(–—-]+(?:(?:{_VERBS})ing|which|that|as (?:if|though)|possibly|perhaps|probably|likely|"
    r"maybe|apparently|seemingly|consistent|typical|characteristic|in|with)(?![A-Za-z])",
    re.IGNORECASE,
)
_MIN_WORDS = 4  # of the rest of a sentence: fewer say nothing
# Words that a sentence cannot end with.
_DANGLING = re.compile(
    r"(?<![A-Za-z])(?:is|are|was|were|be|been|being|an?|the|of|and|or|but|in|with|to|by|at|as|for|"
    r"from|if|though|while|then|more|very|most|seems?|looks?|appears?|becom(?:es?|ing)|remains?|"
    r"looking|seeming|appearing)$",
    re.IGNORECASE,
)
# The reasoning of a model, which some servers return too.
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_MARKDOWN = re.compile(r"^\s*(?:[-*•#>]+|\d+[.)])\s+|[*_`#]+", re.MULTILINE)
_SENTENCE = re.compile(r"(?<=[.!?;。！？；])(?:[\"'”’)]*)(?:\s+|(?<=[。！？；]))|\n+")


def label_words(text: str, classes: Iterable[str] = ()) -> list[str]:
    """Return the label words in ``text``, as written, in order.

    ``classes`` are further class names, of a data set, with any ending.
    """
    return [match[0] for match in _pattern(tuple(classes)).finditer(text)]


def clean(text: str, classes: Iterable[str] = ()) -> str:
    """Return a description without label words and without Markdown; empty if nothing is left.

    Of a sentence with a label word, an interpretation at its end is removed ("The brows rise,
    suggesting surprise." becomes "The brows rise."): from the last of some openings (suggesting,
    which, as if, in, with, …) before the word, if at least four words are left that do not break
    off. Any other sentence with a label word is removed as a whole. A semicolon ends a sentence.
    """
    pattern = _pattern(tuple(classes))
    plain = _MARKDOWN.sub("", _THOUGHT.sub(" ", text))
    sentences = (_clean_sentence(part.strip(), pattern) for part in _SENTENCE.split(plain))
    return " ".join(" ".join(sentence for sentence in sentences if sentence).split())


def _clean_sentence(sentence: str, pattern: re.Pattern[str]) -> str:
    word = pattern.search(sentence)
    if not word:
        return sentence
    for opener in reversed(list(_OPENER.finditer(sentence, 0, word.start()))):
        head = sentence[: opener.start()].rstrip(" ,:;–—-(")
        if len(head.split()) >= _MIN_WORDS and not _DANGLING.search(head):
            return f"{head}."
    return ""


@lru_cache
def _pattern(classes: tuple[str, ...]) -> re.Pattern[str]:
    words = [word for line in WORDS.values() for word in line.split()]
    stems = [word.replace("*", "[a-z]*") for word in words]
    for name in classes:
        parts = filter(None, re.split(r"[\W_]+", name))
        if own := r"[\W_]+".join(map(re.escape, parts)):
            stems.append(f"{own}[a-z]*")
    english, chinese = "|".join(stems), "|".join(CHINESE.split())
    return re.compile(rf"(?<![a-z])(?:{english})(?![a-z])|{chinese}", re.IGNORECASE)
