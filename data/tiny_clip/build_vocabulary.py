#!/usr/bin/env python3
"""Build the vocabulary of tiny-clip: byte-pair merges learnt from the words of the emoji table.

Byte-pair encoding (Sennrich et al., arXiv 1508.07909) starts from single bytes and joins, again and again, the
adjacent pair that occurs most often in the corpus; ties go to the pair that sorts first, so the same table always
gives the same file. The corpus is every name, keyword, sub-group and group of ``data/emoji/emoji.csv`` once, plus
the words of common prompts. Bytes, end-of-word mark and file layout are those of ``open_clip.SimpleTokenizer``, which
reads the result: 256 bytes + 256 bytes at the end of a word + the merges + two special tokens.

    python data/tiny_clip/build_vocabulary.py            # write bpe.txt.gz and vocab_size in config.json
    python data/tiny_clip/build_vocabulary.py --check    # compare with the files here, write nothing
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import regex
from open_clip.tokenizer import bytes_to_unicode

HERE = Path(__file__).resolve().parent
EMOJI = HERE.parent / "emoji" / "emoji.csv"

MERGES = 1500
SPECIAL = 2  #: <start_of_text> and <end_of_text>
PROMPT_WEIGHT = 30  #: how often the prompt words count, so that each becomes one token
PROMPT_WORDS = """
a an the this that of in on with and or for from to is are it its one two three four five six seven eight nine zero
photo photograph picture image drawing sketch painting cartoon illustration sticker icon emoji symbol logo clipart art
style rendering render close up cropped blurry bright dark good bad clean dirty low high resolution quality pixelated
large small big little many some my your background foreground scene view front side white black red orange yellow
green blue purple pink brown gray grey colorful flat shiny glossy plastic toy origami sculpture
handwritten digit number letter texture type centered object thing animal food person place
noto twemoji openmoji fluent google twitter microsoft outline shaded real fake edited authentic manipulated original
"""

WORD = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")  # as SimpleTokenizer splits text

Word = tuple[str, ...]


def corpus(table: Path) -> Counter[Word]:
    """How often each word occurs, as the symbols it starts from: bytes, the last one marked ``</w>``."""
    texts = Counter({PROMPT_WORDS: PROMPT_WEIGHT})
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            texts.update([row["name"], row["subgroup"], row["group"], *row["keywords"].split(";")])
    letters = bytes_to_unicode()
    words: Counter[Word] = Counter()
    for text, count in texts.items():
        for word in WORD.findall(text.lower()):
            symbols = [letters[byte] for byte in word.encode()]
            words[(*symbols[:-1], symbols[-1] + "</w>")] += count
    return words


def join(word: Word, pair: tuple[str, str]) -> Word:
    """`word` with every occurrence of `pair` joined, left to right."""
    joined: list[str] = []
    for symbol in word:
        # A symbol that was joined just now differs from pair[0], so it cannot be joined a second time.
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return tuple(joined)


def learn(words: Counter[Word], merges: int) -> list[tuple[str, str]]:
    """Learn the first `merges` byte-pair merges; fewer where no pair occurs twice."""
    learnt: list[tuple[str, str]] = []
    while len(learnt) < merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        learnt.append(best)
        # Distinct words stay distinct: their symbols spell different strings.
        words = Counter({join(word, best): count for word, count in words.items()})
    return learnt


def main() -> int:
    """Write or check ``bpe.txt.gz`` and ``config.json``; the exit code is 1 where a check fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="compare with the files here, write nothing")
    check = parser.parse_args().check
    merges = learn(corpus(EMOJI), MERGES)
    # SimpleTokenizer skips the first line and takes every other one, so the text must not end with a newline.
    text = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)])
    config = json.loads((HERE / "config.json").read_text(encoding="utf-8"))
    vocab_size = 2 * 256 + len(merges) + SPECIAL
    if check:
        same_text = gzip.decompress((HERE / "bpe.txt.gz").read_bytes()).decode() == text
        same_size = config["model_cfg"]["text_cfg"]["vocab_size"] == vocab_size
        print("vocabulary: " + ("as built here" if same_text and same_size else "DIFFERS from what this script builds"))
        return 0 if same_text and same_size else 1
    (HERE / "bpe.txt.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    config["model_cfg"]["text_cfg"]["vocab_size"] = vocab_size
    (HERE / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    print(f"vocabulary: {len(merges)} merges, {vocab_size} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
