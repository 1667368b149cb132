"""The 15 data sets of the CoOp family as one table: folders, split files, sizes, prompts, and where to get them.

Two folder schemes are in use below one root: that of CoOp (arXiv 2109.01134), which MaPLe and PromptSRC share, and the
one that CLIP-LoRA's code (arXiv 2405.18541) opens. Class counts and split sizes are those of the published split files
(reconstructed from the data sets' totals; ``vision-lowrank data check`` compares them with the files at hand).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from ..errors import DataError, near_miss

SPLITS_PAGE = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"

# The ensemble of Tip-Adapter (arXiv 2207.09519), an alternative to a data set's own template.
ENSEMBLE = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

PHOTO = "a photo of a {}."
Source = Literal["json", "variants", "imagenet", "numbered", "wnids"]


class CoopSet(NamedTuple):
    """One data set.

    Attributes:
        key: its name in configs.
        folders: names below the root: CoOp's, then CLIP-LoRA's where that differs.
        images: the picture folder below it, in order of preference; "" is the folder itself.
        split: the file that lists pictures or names classes.
        source: how that file is read, see :mod:`vision_lowrank.data.coop_layout`.
        classes: number of classes.
        sizes: pictures in train, val and test.
        template: the prompt that prompt-learning papers use.
        page: where the pictures come from.
        inside: folders that a complete picture folder holds.
        torchvision: the class of ``torchvision.datasets`` that can download the pictures; "" = none can.
        torchvision_at: where below the root that class puts what belongs into `folders[0]`.
    """

    key: str
    folders: tuple[str, ...]
    images: tuple[str, ...]
    split: str
    source: Source
    classes: int
    sizes: tuple[int, int, int]
    template: str
    page: str
    inside: tuple[str, ...] = ()
    torchvision: str = ""
    torchvision_at: str = ""


VGG = "https://www.robots.ox.ac.uk/~vgg/data"
GITHUB = "https://github.com"

_ALL = (
    CoopSet(
        "imagenet", ("imagenet",), ("images", ""), "classnames.txt", "imagenet", 1000, (1_281_167, 0, 50_000),
        PHOTO, "https://www.image-net.org/download.php", inside=("train", "val"),
    ),
    CoopSet(
        "caltech101", ("caltech-101", "Caltech101"), ("101_ObjectCategories",), "split_zhou_Caltech101.json", "json",
        100, (4128, 1649, 2465), PHOTO, "https://data.caltech.edu/records/mzrjq-6wc02",
        torchvision="Caltech101", torchvision_at="caltech101",
    ),
    CoopSet(
        "oxford_pets", ("oxford_pets", "OxfordPets"), ("images",), "split_zhou_OxfordPets.json", "json",
        37, (2944, 736, 3669), "a photo of a {}, a type of pet.", f"{VGG}/pets/",
        torchvision="OxfordIIITPet", torchvision_at="oxford-iiit-pet",
    ),
    CoopSet(
        "stanford_cars", ("stanford_cars", "StanfordCars"), ("",), "split_zhou_StanfordCars.json", "json",
        196, (6509, 1635, 8041), PHOTO, "https://ai.stanford.edu/~jkrause/cars/car_dataset.html (if down, a mirror)",
        inside=("cars_train", "cars_test"),
    ),
    CoopSet(
        "oxford_flowers", ("oxford_flowers", "Flower102"), ("jpg",), "split_zhou_OxfordFlowers.json", "json",
        102, (4093, 1633, 2463), "a photo of a {}, a type of flower.", f"{VGG}/flowers/102/",
        torchvision="Flowers102", torchvision_at="flowers-102",
    ),
    CoopSet(
        "food101", ("food-101", "Food101"), ("images",), "split_zhou_Food101.json", "json",
        101, (50_500, 20_200, 30_300), "a photo of {}, a type of food.",
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        torchvision="Food101", torchvision_at="food-101",
    ),
    CoopSet(
        "fgvc_aircraft", ("fgvc_aircraft",), ("images",), "variants.txt", "variants",
        100, (3334, 3333, 3333), "a photo of a {}, a type of aircraft.", f"{VGG}/fgvc-aircraft/",
        torchvision="FGVCAircraft", torchvision_at="fgvc-aircraft-2013b/data",
    ),
    CoopSet(
        "sun397", ("sun397", "SUN397"), ("SUN397",), "split_zhou_SUN397.json", "json",
        397, (15_880, 3970, 19_850), PHOTO, "https://vision.princeton.edu/projects/2010/SUN/",
        torchvision="SUN397",
    ),
    CoopSet(
        "dtd", ("dtd", "DTD"), ("images",), "split_zhou_DescribableTextures.json", "json",
        47, (2820, 1128, 1692), "{} texture.", f"{VGG}/dtd/", torchvision="DTD", torchvision_at="dtd/dtd",
    ),
    CoopSet(
        "eurosat", ("eurosat",), ("2750",), "split_zhou_EuroSAT.json", "json",
        10, (13_500, 5400, 8100), "a centered satellite photo of {}.", f"{GITHUB}/phelber/EuroSAT",
        torchvision="EuroSAT", torchvision_at="eurosat",
    ),
    CoopSet(
        "ucf101", ("ucf101", "UCF101"), ("UCF-101-midframes",), "split_zhou_UCF101.json", "json",
        101, (7639, 1898, 3783), "a photo of a person doing {}.", SPLITS_PAGE,
    ),
    CoopSet(
        "imagenetv2", ("imagenetv2",), ("imagenetv2-matched-frequency-format-val",), "classnames.txt", "numbered",
        1000, (0, 0, 10_000), PHOTO, f"{GITHUB}/modestyachts/ImageNetV2",
    ),
    CoopSet(
        "imagenet_sketch", ("imagenet-sketch",), ("images",), "classnames.txt", "wnids",
        1000, (0, 0, 50_889), PHOTO, f"{GITHUB}/HaohanWang/ImageNet-Sketch",
    ),
    CoopSet(
        "imagenet_a", ("imagenet-adversarial",), ("imagenet-a",), "classnames.txt", "wnids",
        200, (0, 0, 7500), PHOTO, f"{GITHUB}/hendrycks/natural-adv-examples",
    ),
    CoopSet(
        "imagenet_r", ("imagenet-rendition",), ("imagenet-r",), "classnames.txt", "wnids",
        200, (0, 0, 30_000), PHOTO, f"{GITHUB}/hendrycks/imagenet-r",
    ),
)  # fmt: skip

COOP_SETS = {spec.key: spec for spec in _ALL}
# Those with training pictures; the others are variants of ImageNet to test on.
COOP_11 = tuple(spec.key for spec in _ALL if spec.sizes[0])


def coop_set(name: str) -> CoopSet:
    """Look up the data set called `name`.

    Raises:
        DataError: there is none.
    """
    if name not in COOP_SETS:
        raise DataError(f"unknown data set '{name}'.{near_miss(name, COOP_SETS)} Known: {', '.join(COOP_SETS)}.")
    return COOP_SETS[name]
