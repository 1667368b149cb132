"""How much of a reference text does a text repeat? ROUGE-L, BLEU-4 and CIDEr-D, one reference per text.

A text is its words: lower case, runs of letters, digits and underscores; punctuation separates and does not count.

* ROUGE-L (Lin 2004): with LCS the longest common subsequence of words, P = LCS / |text|, R = LCS / |reference|,
  F = (1 + b^2) P R / (R + b^2 P), b = 1.2.
* BLEU-4 (Papineni et al. 2002), of all texts together: exp(mean_n log p_n) min(1, exp(1 - r/c)), n = 1…4, where p_n is
  the share of the texts' n-grams found in their references, each as often as it is there at most, and c, r are numbers
  of words. Smoothing (Lin & Och 2004): for n >= 2 both counts of p_n are raised by 1. Without a common word it is 0.
* CIDEr-D (Vedantam et al. 2015): vectors g_n of n-gram counts times log(N / number of references with it); per text
  10 mean_n [ sum min(g_n, g_n') g_n' / (|g_n| |g_n'|) ] exp(-(c - r)^2 / (2 sigma^2)), sigma = 6 words; then the mean
  over texts. N is the number of references: with few of them it says little.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

Grams = Counter[tuple[str, ...]]
ORDERS = (1, 2, 3, 4)


def words(text: str) -> list[str]:
    """Split a text into its words, in lower case."""
    return re.findall(r"\w+", text.lower())


def rouge_l(text: str, reference: str, beta: float = 1.2) -> float:
    """Compute ROUGE-L F in [0, 1]; 0 where either has no words."""
    one, other = words(text), words(reference)
    common = common_subsequence(one, other)
    if not common:
        return 0.0
    precision, recall = common / len(one), common / len(other)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def bleu4(texts: Sequence[str], references: Sequence[str]) -> float | None:
    """Compute BLEU-4 of all texts together, in [0, 1]; None without texts."""
    if not texts:
        return None
    pairs = [(words(text), words(reference)) for text, reference in zip(texts, references, strict=True)]
    length, wanted = sum(len(one) for one, _ in pairs), sum(len(other) for _, other in pairs)
    logs = []
    for n in ORDERS:
        hits = sum((grams(one, n) & grams(other, n)).total() for one, other in pairs)
        total = sum(grams(one, n).total() for one, _ in pairs)
        smooth = int(n > 1)
        if not hits + smooth:
            return 0.0
        logs.append(math.log((hits + smooth) / (total + smooth)))
    return math.exp(sum(logs) / len(ORDERS) + min(0.0, 1 - wanted / length))


def cider_d(texts: Sequence[str], references: Sequence[str], sigma: float = 6.0) -> float | None:
    """Compute mean CIDEr-D, in [0, 10]; None with fewer than two references, where every weight is 0."""
    if len(references) < 2:
        return None
    pairs = [(words(text), words(reference)) for text, reference in zip(texts, references, strict=True)]
    found = Counter(gram for _, other in pairs for n in ORDERS for gram in grams(other, n))
    weight = {gram: math.log(len(pairs) / count) for gram, count in found.items()}
    rare = math.log(len(pairs))
    scores = []
    for one, other in pairs:
        alike = sum(_likeness(grams(one, n), grams(other, n), weight, rare) for n in ORDERS) / len(ORDERS)
        scores.append(10 * alike * math.exp(-((len(one) - len(other)) ** 2) / (2 * sigma**2)))
    return sum(scores) / len(scores)


def grams(tokens: Sequence[str], n: int) -> Grams:
    """Count how often each run of `n` words occurs."""
    return Counter(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))


def common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Compute the length of the longest common subsequence.

    One row of the usual table at a time, each row a number whose zero bits are the columns where it rises by one
    (Hyyrö 2004): an addition carries a rise along to the next match.
    """
    full = (1 << len(other)) - 1
    places: dict[str, int] = {}
    for column, word in enumerate(other):
        places[word] = places.get(word, 0) | 1 << column
    row = full
    for word in one:
        match = row & places.get(word, 0)
        row = ((row + match) | (row - match)) & full
    return len(other) - row.bit_count()


def _likeness(one: Grams, other: Grams, weight: dict[tuple[str, ...], float], rare: float) -> float:
    """Compute the cosine of two weighted vectors in which the first counts no n-gram more often than the second."""
    vectors = [{gram: count * weight.get(gram, rare) for gram, count in each.items()} for each in (one, other)]
    size = math.prod(math.sqrt(sum(value * value for value in vector.values())) for vector in vectors)
    both = sum(min(value, vectors[1].get(gram, 0.0)) * vectors[1].get(gram, 0.0) for gram, value in vectors[0].items())
    return both / size if size else 0.0
