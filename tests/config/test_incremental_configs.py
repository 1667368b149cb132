"""CoACT's recipes against the numbers of its paper and code, typed here a second time from the method card."""

import pytest

from vision_lowrank.config import load_config
from vision_lowrank.data.coop_sets import coop_set
from vision_lowrank.paths import shipped

BOTH, PET, CLASSIFIER = ("classifier", "pet"), ("pet",), ("classifier",)
NOTHING = (0, None, None)

# data set: classes, base, way, sessions | base epochs | lr, l_ft, e_ft, encoder's factor | later: epochs, parts, factor
FSCIT = {
    "caltech101": ((102, 12, 10, 10), 50, (0.1, 6, 0, 0.1), (1, PET, 0.01)),
    "cifar100": ((100, 10, 10, 10), 50, (0.1, 9, 0, 0.001), (1, CLASSIFIER, 0.001)),
    "country211": ((211, 22, 21, 10), 50, (0.5, 6, 10, 0.01), NOTHING),
    "cub200": ((200, 20, 20, 10), 50, (0.1, 6, 25, 0.1), NOTHING),
    "dtd": ((47, 7, 5, 9), 30, (0.5, -1, 10, 0.1), (1, BOTH, 0.001)),
    "eurosat": ((10, 1, 1, 10), 50, (0.5, -1, 10, 0.01), (1, CLASSIFIER, 0.001)),
    "fgvc_aircraft": ((100, 10, 10, 10), 50, (0.1, 11, 0, 0.1), NOTHING),
    "food101": ((101, 11, 10, 10), 50, (0.5, 11, 10, 1.0), NOTHING),
    "gtsrb": ((43, 7, 4, 10), 30, (0.1, 6, 0, 0.1), NOTHING),
    "mini_imagenet": ((100, 10, 10, 10), 30, (0.1, 3, 25, 0.5), (1, PET, 0.001)),
    "oxford_flowers": ((102, 12, 10, 10), 50, (0.5, -1, 0, 0.01), NOTHING),
    "oxford_pets": ((37, 5, 4, 9), 50, (0.1, 11, 25, 0.5), (1, BOTH, 0.001)),
    "resisc45": ((45, 5, 5, 9), 50, (0.1, 3, 0, 0.1), NOTHING),
    "stanford_cars": ((196, 28, 21, 9), 30, (0.1, -1, 0, 0.01), NOTHING),
    "sun397": ((397, 45, 44, 9), 30, (0.1, 11, 10, 0.01), (1, CLASSIFIER, 0.001)),
    "voc2007": ((20, 2, 2, 10), 30, (0.1, 3, 25, 0.1), (1, CLASSIFIER, 0.001)),
}
FSCIL = {
    "cifar100": ((100, 60, 5, 9), 25, (0.001, 11, 10, 0.01), NOTHING),
    "mini_imagenet": ((100, 60, 5, 9), 25, (0.001, 11, 10, 0.01), NOTHING),
    "cub200": ((200, 100, 10, 11), 25, (0.1, -1, 0, 0.01), NOTHING),
}
TABLE = {f"coact_fscit_{name}": row for name, row in FSCIT.items()}
TABLE |= {f"coact_fscil_{name}": row for name, row in FSCIL.items()}

RECIPES = sorted(shipped("configs").glob("incremental/coact_*.yaml"))


def test_there_is_a_recipe_for_every_row_of_the_card():
    assert [path.stem for path in RECIPES] == sorted(TABLE)


@pytest.fixture(params=RECIPES, ids=lambda path: path.stem)
def recipe(request):
    """A checked recipe, its protocol's name, its data set's, and its row."""
    _, protocol, dataset = request.param.stem.split("_", 2)
    return load_config(request.param), protocol, dataset, TABLE[request.param.stem]


def test_what_differs_between_data_sets(recipe):
    config, _, _, (_, epochs, (lr, l_ft, e_ft, factor), (later, trains, later_factor)) = recipe
    task = config.task
    assert (config.engine.lr, task.epochs) == (lr, epochs)
    assert (task.l_ft, task.e_ft, task.encoder_lr_factor) == (l_ft, e_ft, factor)
    assert task.incremental_epochs == later
    if later:
        assert (task.incremental_trains, task.incremental_lr_factor) == (trains, later_factor)


def test_sessions_and_shots(recipe):
    config, protocol, dataset, ((classes, base, way, sessions), *_) = recipe
    cut = config.task.protocol
    assert (cut.name, cut.dataset, cut.order) == (protocol, dataset, "natural")
    assert cut.sizes(classes) == (base,) + (way,) * (sessions - 1)
    assert (cut.base_shots, cut.shots, cut.draw) == {"fscit": (10, 10, "seed"), "fscil": (None, 5, "paper")}[protocol]
    assert cut.test == ("val" if dataset in ("dtd", "food101", "oxford_flowers") else None)


def test_a_reader_with_as_many_classes(recipe):
    config, _, dataset, ((classes, *_), *_) = recipe
    if config.data.type == "coop":
        assert config.data.name == dataset
        assert coop_set(dataset).classes == classes
        assert config.task.protocol.test != "val" or coop_set(dataset).sizes[1]
    elif config.data.type == "folder":
        assert f"DATA/{dataset}" in (config.data.root or config.data.train)
    else:
        assert config.data.type == dataset


def test_what_all_share(recipe):
    config, protocol, dataset, _ = recipe
    task, engine, adapter = config.task, config.engine, config.adapter
    assert config.backbone.name == "timm:vit_base_patch16_224"
    assert config.backbone.options.pooler
    assert (task.type, task.head, task.cit_variant, task.select) == ("incremental", "prototype", "code", "last")
    assert (task.contrastive, task.consistency, task.temperature, task.projection) == (1.0, 1.0, 0.07, "none")
    assert (task.teacher_momentum, task.consistency_model, len(config.seeds)) == (0.999, "base", 3)
    assert (task.augmentation, task.crop, task.flip) == ("color_jitter", (0.08, 1.0), 0.5)
    assert (engine.optimizer, engine.momentum, engine.nesterov, engine.weight_decay) == ("sgd", 0.9, True, 5e-4)
    assert (engine.batch_size, engine.schedule, engine.min_lr, engine.warmup_steps) == (64, "cosine", 0.0, 0)
    assert (adapter.type, adapter.towers, adapter.modules) == ("lora", ("vision",), ("q", "v"))
    assert [adapter.options[key] for key in ("r", "alpha", "dropout")] == [16, 16, 0.1]
    assert adapter.layers == (":6" if (protocol, dataset) == ("fscil", "cub200") else "all")
