import multiprocessing

import numpy as np
import pytest
import torch.distributed as dist
from sklearn import metrics as sk

from vision_lowrank.errors import UserError
from vision_lowrank.metrics.localisation.pixels import COLUMNS, pixel_report, pixel_row, pixel_values


def picture(seed, edited=True, size=(12, 17)):
    """A map that partly agrees with its mask; with ties."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(size, dtype=bool)
    if edited:
        truth[3 : 5 + seed % 5, 2 : 6 + seed % 7] = True
    return np.clip(rng.normal(0.3 + 0.3 * truth, 0.25), 0, 1).round(2), truth


def by_scikit_learn(pictures):
    """The report of edited pictures with a second implementation, convention by convention."""
    rows = {name: [] for name in ("f1", "iou", "accuracy", "auc")}
    for p, y in pictures:
        each = [(q > 0.5).ravel() for q in (p, 1 - p)]
        rows["f1"].append([sk.f1_score(y.ravel(), c) for c in each])
        rows["iou"].append([sk.jaccard_score(y.ravel(), c) for c in each])
        rows["accuracy"].append([sk.accuracy_score(y.ravel(), c) for c in each])
        rows["auc"].append([sk.roc_auc_score(y.ravel(), q.ravel()) for q in (p, 1 - p)])
    want = {}
    for name, values in rows.items():
        table = np.array(values)
        want[f"pixel_{name}"], want[f"pixel_{name}_reverse"] = table.mean(axis=0)
        want[f"pixel_{name}_double_oracle"] = table.max(axis=1).mean()
    return want


def test_every_convention_equals_scikit_learn():
    pictures = [picture(seed) for seed in range(8)]
    found = pixel_report([pixel_row(*each) for each in pictures], [True] * 8)
    want = by_scikit_learn(pictures)
    assert {name: found[name] for name in want} == pytest.approx(want, rel=1e-12)
    assert found["pixel_pictures"] == 8


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_reverse_is_origin_of_the_inverse_and_double_is_no_worse(threshold):
    rows = np.stack([pixel_row(*picture(seed), threshold=threshold) for seed in range(8)])
    inverse = np.stack([pixel_row(1 - p, y, threshold=threshold) for p, y in map(picture, range(8))])
    for name, values in pixel_values(rows, "reverse").items():
        np.testing.assert_allclose(values, pixel_values(inverse)[name], rtol=1e-12)
        assert (pixel_values(rows, "double")[name] >= pixel_values(rows)[name]).all()


def test_padding_changes_nothing():
    (p, y), valid = picture(1), np.zeros((20, 20), dtype=bool)
    valid[:12, :17] = True
    wide, mask = np.full((20, 20), 0.9), np.ones((20, 20), dtype=bool)
    wide[valid], mask[valid] = p.ravel(), y.ravel()
    assert np.array_equal(pixel_row(wide, mask, valid), pixel_row(p, y))


def test_a_constant_map_has_auc_one_half_and_a_value_at_the_threshold_is_not_edited():
    _, y = picture(0)
    row = dict(zip(COLUMNS, pixel_row(np.full(y.shape, 0.5), y), strict=True))
    assert (row["auc"], row["tp"], row["fp"], row["reverse_tp"]) == (0.5, 0, 0, 0)


def test_real_pictures_count_in_false_localisation_only():
    edited = [pixel_row(*picture(seed)) for seed in range(3)]
    p, nothing = np.zeros((2, 10, 10)), np.zeros((10, 10), dtype=bool)
    p[0, :2, :5] = 0.7
    rows, labels = [*edited, *(pixel_row(each, nothing) for each in p)], [True] * 3 + [False] * 2
    found, alone = pixel_report(rows, labels), pixel_report(edited, [True] * 3)
    assert {name: found[name] for name in alone if "false" not in name and "real" not in name} == {
        name: value for name, value in alone.items() if "false" not in name and "real" not in name
    }
    assert (found["pixel_false_localisation"], found["pixel_false_area"]) == (0.5, 0.05)
    assert alone["pixel_false_localisation"] is None
    assert found["pixel_real_pictures"] == 2
    only_real = pixel_report(rows[3:], labels[3:])
    assert (only_real["pixel_f1"], only_real["pixel_auc_double_oracle"], only_real["pixel_pictures"]) == (None, None, 0)


def test_an_edit_that_was_cut_off_takes_no_part():
    (p, y), cut = picture(0), np.zeros((12, 17), dtype=bool)
    cut[8:, 10:] = True
    with_it = pixel_report([pixel_row(p, y), pixel_row(p, y, cut & ~y)], [True, True])
    assert with_it == pixel_report([pixel_row(p, y)], [True])


def test_a_picture_edited_everywhere_has_no_auc_but_an_iou():
    found = pixel_report([pixel_row([[0.9, 0.1]], [[1, 1]])], [True])
    assert (found["pixel_iou"], found["pixel_auc"]) == (0.5, None)


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="bring them to one size"):
        pixel_row(np.zeros((2, 2)), np.zeros((2, 3)))
    with pytest.raises(UserError, match="look for NaN"):
        pixel_row([[np.nan]], [[1]])
    with pytest.raises(UserError, match="one valid pixel"):
        pixel_row([[0.2]], [[1]], [[0]])
    with pytest.raises(UserError, match="one label per picture"):
        pixel_report(np.zeros((2, 9)), [True])


BATCH = 3
EDITED = [seed % 3 > 0 for seed in range(11)]


def share_of(rank, processes):
    """Numbers of one process's pictures: the last ones repeat the first, so that all have equally many."""
    padded = np.resize(np.arange(len(EDITED)), -(-len(EDITED) // processes) * processes)
    return padded[rank::processes]


def score_in_one(rank, processes, where, results):
    dist.init_process_group("gloo", init_method=f"file://{where}", rank=rank, world_size=processes)
    own = share_of(rank, processes)
    batches = [own[start : start + BATCH] for start in range(0, len(own), BATCH)]
    rows = np.concatenate([[pixel_row(*picture(int(i), EDITED[i])) for i in batch] for batch in batches])
    gathered = [None] * processes
    dist.all_gather_object(gathered, (own, rows))
    ids, table = (np.concatenate(each) for each in zip(*gathered, strict=True))
    first = np.unique(ids, return_index=True)[1]
    results.put((len(ids), pixel_report(table[first], np.array(EDITED)[ids[first]])))
    dist.destroy_process_group()


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_any_number_of_processes_gives_scikit_learns_numbers(processes, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    arguments = (processes, str(tmp_path / "store"), results)
    workers = [context.Process(target=score_in_one, args=(rank, *arguments)) for rank in range(processes)]
    for worker in workers:
        worker.start()
    answers = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    pictures = [picture(seed, edited) for seed, edited in enumerate(EDITED)]
    want = by_scikit_learn([each for each, edited in zip(pictures, EDITED, strict=True) if edited])
    real = [(p > 0.5) for (p, _), edited in zip(pictures, EDITED, strict=True) if not edited]
    want |= {
        "pixel_pictures": sum(EDITED),
        "pixel_real_pictures": len(real),
        "pixel_false_localisation": np.mean([each.any() for each in real]),
        "pixel_false_area": np.mean([each.mean() for each in real]),
    }
    gathered = -(-len(EDITED) // processes) * processes
    for count, found in answers:
        assert count == gathered  # 12 of 11 with two and with three processes
        assert found == pytest.approx(want, rel=1e-12)
        assert found == answers[0][1]
