import math
import random
from functools import cache

import pytest

from vision_lowrank.metrics.text_overlap import bleu4, cider_d, common_subsequence, rouge_l, words

TEXTS = [
    "The fur has no fine detail and the shadow falls to the wrong side.",
    "The letters of the sign are deformed; the edge is too sharp.",
    "The sky repeats the same cloud, and the light comes from two sides.",
]
OTHERS = [
    "The fur has no detail, and its shadow falls to the left side.",
    "Letters of the sign are blurred.",
    "The same cloud repeats in the sky, and the light of the sky comes from two sides of the picture.",
]


def test_words_ignore_case_and_punctuation():
    assert words("The dog's  Fur, (too SMOOTH) é 3.") == ["the", "dog", "s", "fur", "too", "smooth", "é", "3"]


def test_common_subsequence_equals_the_recursion():
    rng = random.Random(0)
    for _ in range(40):
        a, b = (tuple(rng.choice("abcd") for _ in range(rng.randrange(12))) for _ in range(2))

        @cache
        def longest(i, j, a=a, b=b):
            if i == len(a) or j == len(b):
                return 0
            return 1 + longest(i + 1, j + 1) if a[i] == b[j] else max(longest(i + 1, j), longest(i, j + 1))

        assert common_subsequence(a, b) == longest(0, 0)


def test_rouge_l_by_hand():
    assert rouge_l(TEXTS[0], TEXTS[0].upper()) == 1
    assert rouge_l("one two", "three four") == 0
    assert rouge_l("", "three four") == 0
    # LCS "the fur": P = 2/3, R = 2/4
    p, r = 2 / 3, 1 / 2
    assert rouge_l("the smooth fur", "the fur is wet") == pytest.approx((1 + 1.44) * p * r / (r + 1.44 * p))


def test_bleu_by_hand():
    assert bleu4(TEXTS, TEXTS) == pytest.approx(1)
    assert bleu4(["one two"], ["three four"]) == 0
    assert bleu4([""], ["three"]) == 0
    assert bleu4([], []) is None
    # "the the cat" against "the cat sat down": 2 of 3 words (the second "the" is too many), 1 of 2 pairs, no triple.
    want = (2 / 3 * (1 + 1) / (2 + 1) * (0 + 1) / (1 + 1) * (0 + 1) / (0 + 1)) ** 0.25 * math.exp(1 - 4 / 3)
    assert bleu4(["the the cat"], ["the cat sat down"]) == pytest.approx(want)


def test_bleu_counts_all_texts_together():
    twice = bleu4([OTHERS[0]] * 2, [TEXTS[0]] * 2)
    assert twice != bleu4([OTHERS[0]], [TEXTS[0]])  # smoothing weighs less with more n-grams
    assert min(bleu4([o], [t]) for o, t in zip(OTHERS, TEXTS, strict=True)) < bleu4(OTHERS, TEXTS) < 1


def slow_cider(texts, references):
    """The definition with dense vectors over the whole vocabulary."""
    total = 0.0
    split = [[words(each) for each in side] for side in (texts, references)]
    for one, other in zip(*split, strict=True):
        for n in (1, 2, 3, 4):
            runs = [[" ".join(each[i : i + n]) for i in range(len(each) - n + 1)] for each in (one, other)]
            documents = [{" ".join(r[i : i + n]) for i in range(len(r) - n + 1)} for r in split[1]]
            vocabulary = sorted(set(runs[0]) | set(runs[1]))
            idf = [math.log(len(references) / max(1, sum(w in d for d in documents))) for w in vocabulary]
            a, b = ([run.count(w) * i for w, i in zip(vocabulary, idf, strict=True)] for run in runs)
            size = math.hypot(*a) * math.hypot(*b)
            part = sum(min(x, y) * y for x, y in zip(a, b, strict=True)) / size if size else 0
            total += 10 * part * math.exp(-((len(one) - len(other)) ** 2) / 72) / 4
    return total / len(texts)


def test_cider_equals_its_definition():
    assert cider_d(OTHERS, TEXTS) == pytest.approx(slow_cider(OTHERS, TEXTS), rel=1e-12)
    assert 0 < cider_d(OTHERS, TEXTS) < cider_d(TEXTS, TEXTS) == pytest.approx(10)
    assert cider_d(["x y"] * 3, TEXTS) == 0
    assert cider_d(TEXTS[:1], TEXTS[:1]) is None
