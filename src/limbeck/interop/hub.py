"""Distilled sets as data sets of the Hugging Face Hub: one parquet file, and the head of the card."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

from limbeck.core.errors import UserError
from limbeck.interop.portable import picture_paths, pictures_of, save_preprocess
from limbeck.synthetic.distilled import DistilledSet

PARQUET = "data/train-00000-of-00001.parquet"
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def _require_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise UserError("--to hf writes parquet, which needs pyarrow: pip install 'limbeck[hf]'.") from None


def _features(distilled: DistilledSet) -> dict[str, dict[str, Any]]:
    """The columns as the library `datasets` describes them in the metadata of a file."""
    features: dict[str, dict[str, Any]] = {
        "image": {"_type": "Image"},
        "label": {"names": list(distilled.classes), "_type": "ClassLabel"},
        "input": {"shape": list(distilled.images.shape[1:]), "dtype": "float32", "_type": "Array3D"},
    }
    numbers = {"feature": {"dtype": "float32", "_type": "Value"}, "length": len(distilled.classes), "_type": "Sequence"}
    if distilled.labels.is_floating_point():
        features["soft_label"] = numbers
    if distilled.targets is not None:
        features["target"] = numbers
    return features


def export_hf(distilled: DistilledSet, folder: Path) -> list[Path]:
    """Write a parquet file that the library `datasets` reads, and return the files.

    image: a PNG of 8 bits and its path. label: the class. input: float32 (c, h, w), exact, in network input space.
    soft_label, target: float32 (classes,), where the set has them.
    Raises UserError without pyarrow.
    """
    _require_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = []
    for path, picture in zip(picture_paths(distilled), pictures_of(distilled)):
        buffer = BytesIO()
        picture.save(buffer, format="PNG")
        cells.append({"bytes": buffer.getvalue(), "path": path})
    images = distilled.images.float().numpy()
    nested = pa.array(images.reshape(-1))
    for side in (images.shape[3], images.shape[2], images.shape[1]):
        nested = pa.ListArray.from_arrays(pa.array(range(0, len(nested) + 1, side), pa.int32()), nested)
    columns = {
        "image": pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        "label": pa.array(distilled.hard_labels().numpy(), pa.int64()),
        "input": nested,
    }
    for name, tensor in (("soft_label", distilled.labels), ("target", distilled.targets)):
        if tensor is not None and tensor.is_floating_point():
            flat = pa.array(tensor.numpy().reshape(-1))
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, len(distilled.classes))
    metadata = {"huggingface": json.dumps({"info": {"features": _features(distilled)}})}
    file = folder / PARQUET
    file.parent.mkdir()
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), file)
    return [file, save_preprocess(distilled, folder)]


def describe_for_hub(distilled: DistilledSet, folder: Path, license: str) -> str:
    """The head of a data set's card in YAML, whose values are JSON: what the Hub shows and searches by."""
    import pyarrow.parquet as pq

    file, count = folder / PARQUET, len(distilled.images)
    bytes_in_memory = pq.read_table(file).nbytes
    head = {
        "license": license,
        "task_categories": ["image-classification"],
        "size_categories": [next((name for limit, name in SIZES if count < limit), "n>1M")],
        "pretty_name": f"{distilled.provenance.get('data', {}).get('name') or 'images'}, distilled",
        "tags": ["dataset-distillation", "dataset-condensation", "synthetic", "limbeck"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
        "dataset_info": {
            "features": [_describe_feature(name, feature) for name, feature in _features(distilled).items()],
            "splits": [{"name": "train", "num_bytes": bytes_in_memory, "num_examples": count}],
            "download_size": file.stat().st_size,
            "dataset_size": bytes_in_memory,
        },
    }
    return "\n".join(["---", *_yaml_lines(head), "---", ""])


def _describe_feature(name: str, feature: dict[str, Any]) -> dict[str, Any]:
    """A column as the card describes it."""
    if "names" in feature:
        names = {str(label): class_name for label, class_name in enumerate(feature["names"])}
        return {"name": name, "dtype": {"class_label": {"names": names}}}
    if "shape" in feature:
        return {"name": name, "dtype": {"array3_d": {"shape": feature["shape"], "dtype": feature["dtype"]}}}
    if "feature" in feature:
        return {"name": name, "sequence": feature["feature"]["dtype"], "length": feature["length"]}
    return {"name": name, "dtype": "image"}


def _yaml_lines(value: Any) -> list[str]:
    """A value as lines of YAML, whose words are JSON.

    >>> _yaml_lines({"a": [{"b": 1, "c": {"0": "x"}}], "d": ["é", 2]})
    ['a:', '  - b: 1', '    c:', '      "0": "x"', 'd: ["é", 2]']
    """
    if isinstance(value, dict):
        lines = []
        for name, part in value.items():
            inner, key = _yaml_lines(part), json.dumps(name) if name.isdigit() else name
            is_block = isinstance(part, dict) or (isinstance(part, list) and isinstance(part[0], dict))
            lines += [f"{key}:", *(f"  {line}" for line in inner)] if is_block else [f"{key}: {inner[0]}"]
        return lines
    if isinstance(value, list) and isinstance(value[0], dict):
        parts = [_yaml_lines(part) for part in value]
        return [f"{'  ' if number else '- '}{line}" for part in parts for number, line in enumerate(part)]
    text = json.dumps(value, ensure_ascii=False)  # YAML wants what it does not print as a number
    return ["".join(char if char.isprintable() else f"\\U{ord(char):08X}" for char in text)]
