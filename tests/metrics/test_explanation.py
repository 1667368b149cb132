import numpy as np
import pytest

from vision_lowrank.errors import UserError
from vision_lowrank.metrics.explanation import (
    Claims,
    Encoder,
    Explained,
    Judge,
    explanation_report,
    faithfulness,
    similarity,
    used,
)
from vision_lowrank.metrics.text_overlap import bleu4, rouge_l

LETTERS = Encoder("letters", "1", lambda texts: [[text.count(letter) for letter in "abc"] for text in texts])


def test_overlap_ignores_pictures_without_reference():
    rows = [Explained("the fur is too smooth", "the fur is smooth"), Explained("a wrong shadow", "the shadow is wrong")]
    found = explanation_report(rows, LETTERS, cider=True)
    pairs = [(row.text, row.reference) for row in rows]
    assert found["rouge_l"] == pytest.approx(np.mean([rouge_l(*pair) for pair in pairs]))
    assert found["bleu4"] == bleu4(*map(list, zip(*pairs, strict=True)))
    assert found["text_pictures"] == 2
    more = [*rows, Explained("nothing at all"), Explained("nothing at all", " . ")]
    assert explanation_report(more, LETTERS, cider=True) == found


def test_what_is_not_asked_for_is_left_out_and_what_has_nothing_to_count_is_none():
    found = explanation_report([Explained("some text")])
    assert found.pop("text_pictures") == 0
    assert set(found.values()) == {None}
    assert not {"css", "judge", "cider_d"} & set(found)
    assert explanation_report([], LETTERS)["css"] is None


def test_similarity_is_the_mean_cosine_of_embeddings():
    # (2,1,0)·(1,2,0) / 5 = 4/5, equal -> 1, no letters -> 0
    assert similarity(["aab", "abc", "xyz"], ["abb", "cba", "abc"], LETTERS) == pytest.approx((0.8 + 1 + 0) / 3)
    rng = np.random.default_rng(0)
    table = rng.normal(size=(6, 4))
    random = Encoder("random", "0", lambda texts: table[[int(text) for text in texts]])
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    found = similarity(["0", "1", "2"], ["3", "4", "5"], random)
    assert found == pytest.approx((unit[:3] @ unit[3:].T).trace() / 3, rel=1e-12)
    with pytest.raises(UserError, match="'broken' gave"):
        similarity(["a"], ["b"], Encoder("broken", "0", lambda texts: np.zeros(3)))


def test_faithfulness_counts_what_texts_mention():
    heads = Claims("edited", {"texture", "light"}, [(0, 0, 10, 10), (20, 20, 30, 30)])
    rows = [
        Explained("…", said=Claims("edited", ["texture", "texture", "blur"], [(0, 0, 10, 8)]), found=heads),
        Explained("…", said=Claims("real", ["light"], [(0, 0, 10, 4), (21, 20, 30, 30)]), found=heads),
        Explained("…", said=Claims(None), found=Claims("real"), edited=False),
        Explained("…", said=Claims("real", boxes=[(0, 0, 5, 5)]), found=Claims("real"), edited=False),
        Explained("…", said=Claims("real")),  # nobody knows whether it is
        Explained("…", found=heads),  # was not parsed
    ]
    assert faithfulness(rows) == pytest.approx(
        {"faithful_cues": 2 / 3, "faithful_regions": 2 / 4, "verdict_agreement": 2 / 4, "real_stated": 1 / 2}
    )
    assert faithfulness(rows, iou=0.85)["faithful_regions"] == 1 / 4


def test_the_judge_sees_the_filled_prompt_and_is_recorded():
    prompts = []

    def rate(prompt):
        prompts.append(prompt)
        return 0.25 * len(prompts)

    judge = Judge("some-model 2", "Rate: {text} | {reference} | {text}", rate)
    rows = [Explained("has {reference}", "{text}"), Explained("plain")]
    assert explanation_report(rows, judge=judge)["judge"] == pytest.approx(0.375)
    assert prompts == ["Rate: has {reference} | {text} | has {reference}", "Rate: plain | (none) | plain"]
    record = {"judge": "some-model 2", "judge_prompt": "Rate: {text} | {reference} | {text}"}
    assert used(LETTERS, judge) == {"encoder": "letters", "encoder_version": "1", **record}
    assert used() == {}
    with pytest.raises(UserError, match=r"no \{text\}"):
        Judge("m", "Rate it.", rate)
    with pytest.raises(UserError, match="gave 7"):
        Judge("m", "{text}", lambda prompt: 7)(rows[0])
