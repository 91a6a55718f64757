"""The test images alone, for a machine that shall run only data-free students: python benchmarks/gpu_test_images.py

From the archives of a whole data set (gzip tars with cifar10/{train,test}/<class>/<image>) it makes one of 18 MB that
benchmarks/gpu_evidence.py unpacks like any other: the test images, and train.json with all that a data-free run needs
of the training set: mean and std as they would be prepared, the number of images, the class names.

    python benchmarks/gpu_test_images.py --archives cifar10.part1.tar.gz cifar10.part2.tar.gz --out cifar10-test.tar.gz
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

if find_spec("kd") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parent))

import numpy as np
import torch

from kd.data.decoding import decode
from kd.data.listing import Skipped, class_names, image_files
from kd.data.prepare import prepare
from kd.data.raw import RawData, Source, in_canonical_order
from kd.runs.provenance import data_code
from kd.runtime.files import read_json, write_atomically, write_json
from kd.runtime.messages import ConfigError
from kd.settings.shapes import Dataset

ABOUT = "train.json"


def pack(archives: list[Path], out: Path) -> None:
    """Write the tar `out` from the archives of a whole data set. Raises ConfigError where they are none."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for archive in archives:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
        roots = list(folder.iterdir())
        if len(roots) != 1 or not (roots[0] / "test").is_dir():
            raise ConfigError(f"--archives: they hold {sorted(root.name for root in roots)}; needed: one data set")
        prepared = {"name": roots[0].name, "root": None, "classes": None, "image_size": 32}
        dataset = Dataset.from_prepared(prepared)
        prepare(dataset, folder / "data.pt", Source(roots[0], folder, False))
        content = torch.load(folder / "data.pt", weights_only=True)
        about = {key: content[key].tolist() for key in ("mean", "std")} | {"image_size": dataset.image_size}
        about |= {"images": len(content["train_labels"]), "classes": content["classes"]}
        text = json.dumps(about, indent=2).encode()
        with tarfile.open(out, "w:gz") as tar:
            member = tarfile.TarInfo(f"{dataset.name}/{ABOUT}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
            tar.add(roots[0] / "test", f"{dataset.name}/test")


def is_there(root: Path, dataset: Dataset, images: int) -> bool:
    """Whether a folder holds what `pack` packed, whole and for this data set's size and classes."""
    try:
        about = read_json(root / ABOUT)
    except OSError:
        return False
    fits = dataset.classes is None and dataset.image_size == about["image_size"]
    return fits and len(list((root / "test").glob("*/*"))) == images


def prepare_without_training(root: Path, dataset: Dataset, path: Path) -> None:
    """Prepare the test images at `root` like those of the whole set: a data file without training images."""
    about, test = read_json(root / ABOUT), root / "test"
    if class_names(test, Skipped()) != about["classes"]:
        raise ConfigError(f"{test}: its folders are not the classes that {root / ABOUT} names; unpack it again")
    files = [[test / name / file for file in image_files(test / name, Skipped())] for name in about["classes"]]
    images = decode([file for of_class in files for file in of_class], about["image_size"])
    labels = np.repeat(np.arange(len(files)), [len(of_class) for of_class in files])
    raw = in_canonical_order(RawData(images[:0], labels[:0], images, labels, about["classes"]))
    content = {
        "full_size": about["images"],
        "train_images": torch.from_numpy(np.ascontiguousarray(raw.train_images.transpose(0, 3, 1, 2))),
        "train_labels": torch.from_numpy(raw.train_labels),
        "test_images": torch.from_numpy(np.ascontiguousarray(raw.test_images.transpose(0, 3, 1, 2))),
        "test_labels": torch.from_numpy(raw.test_labels),
        "classes": raw.classes,
        "mean": torch.tensor(about["mean"]),
        "std": torch.tensor(about["std"]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: torch.save(content, file))
    write_json(path.with_suffix(".json"), {"code": data_code(dataset), "dataset": dataset.prepared, "read": None})


def lacks_training(path: Path) -> bool:
    """Whether a prepared data file holds test images alone."""
    return "full_size" in torch.load(path, weights_only=True, mmap=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--archives", type=Path, nargs="+", required=True, help="gzip tars of one whole data set")
    parser.add_argument("--out", type=Path, required=True, help="the tar to write")
    options = parser.parse_args()
    try:
        pack(options.archives, options.out)
    except (ConfigError, OSError, tarfile.TarError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
