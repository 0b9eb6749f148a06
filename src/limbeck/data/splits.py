"""What people call the splits of a data set, and the order of class names."""

from __future__ import annotations

import re
from collections.abc import Iterable

from limbeck.core.errors import UserError

WORDS = {
    "train": ("train", "training", "trn", "tr"),
    "validation": (
        "val",
        "valid",
        "validation",
        "validate",
        "dev",
        "devel",
        "development",
        "eval",
        "evaluation",
        "vld",
    ),
    "test": ("test", "testing", "tst", "tests", "t10k", "holdout", "heldout"),
}
SPLIT_OF = {word: split for split, words in WORDS.items() for word in words}
NEUTRAL = {"set", "sets", "data", "dataset", "images", "image", "imgs", "img", "pictures", "pics", "photos", "folder"}
NEUTRAL |= {"split", "dir", "files", "samples", "examples", "the", "new", "my", "final", "full", "all", "ds", ""}
GENERAL = {"image", "images", "img", "imgs", "pictures", "pics", "data", "dataset", "datasets", "jpg", "jpeg", "png"}
NUMBERED = {"part", "parts", "batch", "chunk", "shard"}  # beside a number: one of several folders of one content
PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")  # "trainingSet_2" -> training, Set, 2
COMPOUND = re.compile(r"(train|training|test|testing|val|valid|validation)(set|data|images|imgs|img)")


def name_parts(name: str) -> list[str]:
    """The words and numbers of a name, in lower case.

    >>> name_parts("TrainingSet_2"), name_parts("seg-test")
    (['training', 'set', '2'], ['seg', 'test'])
    """
    parts: list[str] = []
    for part in map(str.lower, PARTS.findall(name)):
        match = COMPOUND.fullmatch(part)
        parts += match.groups() if match else [part]
    return parts


def split_of(name: str) -> str | None:
    """The split that a name means by itself: "train", "validation", "test", or None for any other name.

    >>> split_of("Training"), split_of("VAL_images"), split_of("test1"), split_of("tests of bread")
    ('train', 'validation', 'test', None)
    """
    words = [part for part in name_parts(name) if not part.isdigit()]
    splits = [SPLIT_OF[word] for word in words if word in SPLIT_OF]
    return splits[0] if len(splits) == 1 and all(word in SPLIT_OF or word in NEUTRAL for word in words) else None


def split_with_prefix(name: str) -> tuple[str, str] | None:
    """(the other words, the split) of a name with exactly one word of a split in it; None where there is none.

    >>> split_with_prefix("seg_train"), split_with_prefix("asl_alphabet_test"), split_with_prefix("cat")
    (('seg', 'train'), ('asl alphabet', 'test'), None)
    """
    parts = name_parts(name)
    splits = [SPLIT_OF[part] for part in parts if part in SPLIT_OF]
    if len(splits) != 1:
        return None
    return " ".join(part for part in parts if part not in SPLIT_OF and part not in NEUTRAL), splits[0]


def is_general(name: str) -> bool:
    """Whether a folder of this name holds images, or a part of them, of which it does not say what they show.

    >>> [is_general(name) for name in ("JPEGImages", "images_001", "part2", "machine part", "photos")]
    [True, True, True, False, False]
    """
    words = [part for part in name_parts(name) if not part.isdigit()]
    numbered = GENERAL | NUMBERED if len(words) < len(name_parts(name)) else GENERAL
    return bool(words) and numbered.issuperset(words)


def pair_splits(names: Iterable[str]) -> list[tuple[str, str]]:
    """(split, name) for those of `names` that mean splits as in `find_splits`, also where two mean one split."""
    names = list(names)
    pairs = [(split, name) for name in names if (split := split_of(name))]
    if any(split == "train" for split, _ in pairs):
        return pairs
    prefixed = [(*parts, name) for name in names if (parts := split_with_prefix(name))]
    starts = {start for start, split, _ in prefixed if split == "train"}
    return [(split, name) for start, split, name in prefixed if start in starts] or pairs


def find_splits(names: Iterable[str], where: str) -> dict[str, str]:
    """Those of `names` that mean splits, by split: by themselves, or beside others that differ in the split only.

    Raises UserError where two names mean one split.

    >>> find_splits(["Training", "Testing", "extra"], "pets")
    {'train': 'Training', 'test': 'Testing'}
    >>> find_splits(["seg_train", "seg_test", "seg_pred"], "scenes")
    {'train': 'seg_train', 'test': 'seg_test'}
    """
    by_split: dict[str, str] = {}
    for split, name in pair_splits(names):
        if split in by_split:
            raise UserError(f"{where}: two names for the split {split}, {by_split[split]} and {name}; keep one")
        by_split[split] = name
    return by_split


def sort_class_names(names: Iterable[str]) -> list[str]:
    """Class names in the order of their labels: by value where all are whole numbers, else as text.

    >>> sort_class_names(["10", "9", "0"]), sort_class_names(["10", "9", "ten"])
    (['0', '9', '10'], ['10', '9', 'ten'])
    """
    names = sorted(names)
    if all(re.fullmatch(r"-?\d+", name, re.ASCII) for name in names):
        names.sort(key=int)
    return names
