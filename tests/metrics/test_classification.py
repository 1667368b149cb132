import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, log_loss, top_k_accuracy_score

from vision_lowrank.errors import DataError
from vision_lowrank.metrics import classification as ours


@pytest.mark.parametrize("classes", [2, 7, 20])
def test_metrics_equal_scikit_learn(classes):
    logits = torch.randn(200, classes)
    labels = torch.arange(200) % classes
    found = ours.classification_metrics(logits, labels)
    y, p = labels.numpy(), logits.double().softmax(-1).numpy()
    assert found["accuracy"] == pytest.approx(accuracy_score(y, p.argmax(1)))
    assert found["class_accuracy"] == pytest.approx(balanced_accuracy_score(y, p.argmax(1)))
    assert found["loss"] == pytest.approx(log_loss(y, p), rel=1e-5)
    if classes > 5:
        assert found["top5"] == pytest.approx(top_k_accuracy_score(y, p, k=5))
    else:
        assert "top5" not in found  # a hit among five of at most five says nothing


def test_accuracy_weighs_pictures_and_class_accuracy_weighs_classes_that_occur():
    logits = torch.eye(4)[[0, 0, 0, 1]]
    found = ours.classification_metrics(logits, torch.tensor([0, 0, 0, 2]))
    assert found["accuracy"] == 0.75
    assert found["class_accuracy"] == 0.5  # classes 0 and 2 occur, 1 and 3 do not


def test_empty_set_is_refused():
    with pytest.raises(DataError, match="no pictures"):
        ours.classification_metrics(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))


def test_confusion_rows_are_true_classes():
    logits, labels = torch.randn(100, 5), torch.randint(5, (100,))
    expected = confusion_matrix(labels.numpy(), logits.argmax(1).numpy(), labels=range(5))
    assert np.array_equal(ours.confusion_matrix(logits, labels).numpy(), expected)
