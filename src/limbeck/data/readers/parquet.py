"""Reader of images in parquet files, as the Hugging Face library writes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from limbeck.data.readers.arrow import Batches, Format, read_tables
from limbeck.data.readers.reader import Reader
from limbeck.data.readers.table_files import holds_tables, with_suffix
from limbeck.data.tree import File


@contextmanager
def open_parquet(file: File) -> Iterator[tuple[Any, Batches]]:
    """A parquet file, whose columns are read one by one."""
    import pyarrow.parquet as pq

    with file.open() as stream, pq.ParquetFile(stream) as table:

        def read(columns: Sequence[str], rows: int) -> Iterator[Any]:
            return table.iter_batches(rows, columns=list(columns))  # type: ignore[no-any-return]

        yield table.schema_arrow, read


select_parquet = with_suffix(".parquet")
PARQUET = Format("parquet", select_parquet, open_parquet)
READER = Reader(
    "parquet files", lambda folder: holds_tables(folder, select_parquet), partial(read_tables, PARQUET), decodes=True
)
