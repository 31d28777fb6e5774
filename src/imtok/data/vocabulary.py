"""The words of rendered signs and paragraphs, a fixed fraction of which is held out."""

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Literal

import numpy as np

Split = Literal["train", "test", "all"]
"""A fifth of words and typefaces, chosen by hash, is held out of "train" and makes up "test"."""

_HELD_OUT = 5
_SHORTEST, _LONGEST = 100, 300
_WORDS_BY_LABEL = {
    "street": """
        stop exit slow yield park road lane street bridge tunnel bus taxi tram train gate door north south east west
        left right keep wait walk cross school zone speed limit ahead danger caution closed detour no one way only
        enter push pull up down out in turn end merge rail ramp route curb corner avenue square station airport ferry
        toll bike cycle parking permit private clear men women ladies gents lift stairs fire alarm hose first aid help
        desk
    """,
    "shop": """
        open sale shop store market mall bank salon barber books toys shoes hats gifts cards flowers music sports games
        tools paint glass paper print photo optics jewels watches fashion vintage outlet bargain deal free offer best
        buy sell rent repair service cash credit post mail pharmacy drugs laundry cleaner tailor hotel motel inn hostel
        club cinema theatre garage motors tyres bikes phones kiosk boutique florist studio agency office vacancy
    """,
    "food": """
        bread cake pie pizza pasta soup salad rice beans corn egg eggs ham beef pork fish crab tuna salmon shrimp steak
        burger bacon chips fries taco wrap toast butter cheese cream honey jam sugar salt pepper garlic onion carrot
        potato tomato apple pear plum peach melon lemon lime orange banana mango grape berry cherry nuts seeds oats
        flour noodle curry sushi ramen waffle pancake donut cookie candy fudge mint bakery grill diner bistro deli
        buffet menu
    """,
    "drink": """
        tea coffee latte mocha milk cocoa juice soda cola water ice beer ale stout lager cider wine rum gin vodka
        whisky punch tonic bar pub cafe brew roast espresso cup mug pint bottle tap barrel cellar vine malt hops cork
        lemonade smoothie shake syrup cordial nectar sherbet tavern saloon lounge brewery winery spring
    """,
    "place": """
        paris london rome berlin madrid lisbon vienna prague oslo dublin athens cairo delhi tokyo lima quito havana
        boston dallas austin denver miami seattle chicago phoenix geneva zurich milan venice naples porto bergen turku
        riga tallinn warsaw krakow dover leeds york oxford bath kent devon texas ohio utah maine nevada kansas alaska
        norway spain italy france greece egypt india china japan peru chile brazil mexico canada kenya ghana nepal fiji
    """,
    "animal": """
        cat dog fox wolf bear lion tiger zebra horse pony goat sheep cow bull pig hen duck goose swan owl hawk eagle
        crow robin finch dove gull frog toad newt snake lizard turtle whale seal otter shark trout perch ant bee wasp
        moth beetle spider snail mouse rat rabbit hare deer elk moose camel llama panda koala monkey parrot badger
        beaver ferret donkey kitten puppy falcon heron stork raven
    """,
    "nature": """
        sun moon star sky cloud rain snow wind storm frost fog dew sea lake river creek pond wave tide beach sand rock
        stone cliff hill peak valley forest wood tree oak pine elm birch maple leaf root moss fern grass meadow field
        rose lily tulip daisy iris orchid clover ivy garden park island harbor bay cove reef coral desert canyon
        glacier summer winter autumn dawn dusk night day earth flame
    """,
    "name": """
        anna ben carl dora emma finn grace hugo iris jack kate leo maria nick olga paul rosa sam tina victor wendy zoe
        adam bella clara david elena frank gina harry ivan julia kevin laura mark nora oscar peter quinn ruth simon tom
        ursula vera will alice bruno chloe diego edith felix greta henry ingrid james karen lucas mona nathan otto
        smith jones brown baker miller cooper mason turner walker young king hill green wood hall
    """,
}
_ADJECTIVES = """
    small large tall short long wide narrow deep bright dark pale warm cold hot cool soft hard rough smooth quick slow
    quiet loud young old new fresh dry wet clean dusty heavy light strong weak brave shy calm wild gentle fierce happy
    sad proud humble clever silly kind honest eager lazy busy idle rich poor sweet sour bitter salty round flat sharp
    blunt straight crooked empty full open hidden simple strange common rare gold silver red green blue yellow purple
    grey white black modern ancient golden wooden broken famous distant lonely friendly patient careful curious
"""
_NOUNS = """
    river garden lantern window mountain letter teacher farmer sailor painter doctor baker singer dancer writer reader
    student friend stranger neighbor village city street bridge tower castle church school station harbor market island
    forest meadow valley desert ocean storm cloud shadow candle mirror picture story song poem dream idea question
    answer secret promise journey road path door key clock chair table bottle basket ladder hammer needle blanket
    jacket ribbon feather button coin book page word number flower apple orange carrot onion cake cookie sandwich
    kettle spoon plate bird dog cat horse rabbit tiger eagle turtle spider engine machine camera rocket planet star
    signal pattern color corner circle square pencil brush bell drum violin guitar train boat wagon wheel
"""
_VERBS = """
    follow carry watch paint build open close find lose love fear teach help visit cross chase guard gather borrow
    remember forget answer question discover hide admire draw move pull push raise lower break mend fill empty wash
    warm cool clean cover welcome greet invite imagine describe measure count choose change keep save share trade sell
    buy send bring catch throw lift hold light
"""

WORD_LABELS = (*_WORDS_BY_LABEL, "number", "price", "time", "plate")
"""Kinds of words on signs."""
LABELS = (*WORD_LABELS, "paragraph")
"""All labels of rendered pictures."""


def in_split(key: str, split: Split) -> bool:
    """Return whether a word or typeface belongs to a split, by its hash alone: adding others does not move it.

    A plural is in the same split as its singular.
    """
    digest = hashlib.sha256(_stem(key.casefold()).encode()).digest()
    held_out = int.from_bytes(digest[:8], "big") % _HELD_OUT == 0
    return split == "all" or held_out == (split == "test")


def words_by_label(split: Split = "all") -> dict[str, list[str]]:
    """Return the words of each kind, in lower case, except the generated ones: numbers, prices, times and plates."""
    return {label: _members(words, split) for label, words in _WORDS_BY_LABEL.items()}


def draw_words(
    rng: np.random.Generator, count: int, split: Split = "train", labels: Sequence[str] = WORD_LABELS
) -> tuple[str, list[str]]:
    """Return a random label and `count` words of its kind; listed words share one capitalization (STOP, Stop, stop)."""
    label = labels[int(rng.integers(len(labels)))]
    if label in _WORDS_BY_LABEL:
        words = _members(_WORDS_BY_LABEL[label], split)
        words = [words[i] for i in rng.choice(len(words), count, replace=False)]
        spell = (str.upper, str.upper, str.title, str.lower)[rng.integers(4)]
        return label, [spell(word) for word in words]
    return label, [_draw_token(rng, label, split) for _ in range(count)]


def draw_paragraph(rng: np.random.Generator, split: Split = "train") -> str:
    """Return random sentences of 100 to 300 characters in total, the length of the quotes in InsightTok F.2.2."""
    adjectives, nouns, verbs = (_members(words, split) for words in (_ADJECTIVES, _NOUNS, _VERBS))
    length = rng.integers(_SHORTEST, _LONGEST + 1)
    text = ""
    while True:
        clauses = []
        for _ in range(rng.integers(1, 3)):
            first, second = rng.choice(adjectives, 2, replace=False)
            subject, target = rng.choice(nouns, 2, replace=False)
            clauses.append(f"{first} {_plural(subject)} {rng.choice(verbs)} {second} {_plural(target)}")
        sentence = ", ".join(clauses).capitalize() + str(rng.choice([".", ".", ".", "!"]))
        if len(text) >= _SHORTEST and len(text) + 1 + len(sentence) > length:
            return text
        text = f"{text} {sentence}".strip()


@cache
def _members(words: str, split: Split) -> list[str]:
    return [word for word in words.split() if in_split(word, split)]


def _draw_token(rng: np.random.Generator, label: str, split: Split) -> str:
    while True:
        match label:
            case "number":
                token = str(rng.integers(10 ** rng.integers(1, 5)))
            case "price":
                amount = f"{rng.integers(1, 100)}.{rng.choice([99, 95, 50, 49, 25, 90])}"
                token = str(rng.choice(["$", "£", "€"])) + (amount if rng.random() < 0.7 else amount[:-3])
            case "time":
                token = f"{rng.integers(24)}:{rng.integers(12) * 5:02d}"
            case _:
                letters = "".join(rng.choice(list("ABCDEFGHJKLMNPRSTUVWXYZ"), rng.integers(1, 4)))
                token = letters + str(rng.integers(10 ** rng.integers(2, 4)))
        if in_split(token, split):
            return token


def _stem(word: str) -> str:
    """Return a stem that a word and its plural share."""
    ending = "es" if word.endswith(("ches", "shes", "sses", "xes")) else "s"
    return word.removesuffix(ending).removesuffix("ie").removesuffix("y")


def _plural(noun: str) -> str:
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"
