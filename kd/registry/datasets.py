"""Data sets by name. This file imports no torch, so that names can be checked before any job starts.

To add one: write `kd/data/<name>.py` with a function `load(dataset: Dataset, source: Source) -> RawData` and add its
line here, as docs/add-a-dataset.md shows.
"""

from __future__ import annotations

DATASETS: dict[str, str] = {
    "digits": "kd.data.digits:load",
    "cifar10": "kd.data.cifar:load",
    "cifar100": "kd.data.cifar:load",
    "fashion_mnist": "kd.data.fashion_mnist:load",
    "folder": "kd.data.folder:load",
    "rooms": "kd.data.rooms:load",
    "nyuv2": "kd.data.nyuv2:load",
    "pairs": "kd.data.pairs:load",
    "none": "kd.data.none:load",
}
SIZES: dict[str, tuple[int, int]] = {  # training images and classes, for estimates; unknown where it is not here
    "digits": (1_437, 10),
    "cifar10": (50_000, 10),
    "cifar100": (50_000, 100),
    "fashion_mnist": (60_000, 10),
    "rooms": (1_600, 13),
    "nyuv2": (795, 13),
}
OWN_FOLDER = {  # data sets that are a folder of the user's -> what is in it
    "folder": "train/<class>/ and test/<class>/",
    "pairs": "classes.yaml, train/ and test/, each with images/ and labels/",
}
SEGMENTATION = ("rooms", "nyuv2", "pairs")  # whose labels are maps; the others have a class per image
WITH_DEPTH = ("rooms", "nyuv2")  # as a fourth channel, where dataset.channels is 4
CLASSES_FILE = "classes.yaml"  # in the root of pairs
SYNTHETIC = "synthetic"  # what students are scored on where the data set has no images (none)
GREY = ("digits", "fashion_mnist")  # their images have no colours, so the only view of them is rgb

# What lies below dataset.root: one of these groups of names. Looked for before anything runs; data sets that are made
# on the spot have none.
CONTENTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "cifar10": (("train", "test"), ("cifar-10-batches-py",)),
    "cifar100": (("train", "test"), ("cifar-100-python",)),
    "fashion_mnist": (("train-images-idx3-ubyte.gz",), ("FashionMNIST/raw",)),
    "folder": (("train", "test"),),
    "nyuv2": (("nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat"),),
    "pairs": (("train", "test", CLASSES_FILE),),
}
NYU_13 = (  # the classes of NYUv2 in their usual order
    *("bed", "books", "ceiling", "chair", "floor", "furniture", "objects"),
    *("picture", "sofa", "table", "tv", "wall", "window"),
)
INSTALLED = {"fashion_mnist": "/usr/share/datasets/fashion-mnist"}  # where a package of the system puts it
DOWNLOADED = ("cifar10", "cifar100", "fashion_mnist")
