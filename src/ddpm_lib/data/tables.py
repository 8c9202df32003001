"""Images from columns of Arrow tables: 🤗 datasets and parquet files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_lib.core.registry import unknown_name
from ddpm_lib.core.spelling import option
from ddpm_lib.data.columns import IMAGE_NAMES, LABEL_NAMES, choose_column
from ddpm_lib.data.decode import Decoded, ImageError, decode, decode_bytes, fit_array
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.labels import Odd, make_labels
from ddpm_lib.data.names import Names, NumberedNames, PackedNames
from ddpm_lib.data.source import Examined, Source, content_hash, file_hash
from ddpm_lib.runtime.limits import available_memory


class TableSource(Source):
    """Images in one Arrow column: `{bytes, path}` structs (🤗 Image), bytes, paths, or nested lists
    of pixels.

    Args:
        column: The images, a `pyarrow.ChunkedArray`.
        rows: Rows of the column that count, int64 (n,), or None for all.
        base: Folder that relative paths start from.
    """

    def __init__(
        self, column: Any, rows: np.ndarray | None = None, base: Path | None = None
    ) -> None:
        import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]

        self.notes = []
        self.further: tuple[list[str], Callable[[str], list[Any]]] | None = None
        """Names of the table's columns, and what reads one."""
        while isinstance(column.type, pa.BaseExtensionType):
            column = pa.chunked_array(
                [chunk.storage for chunk in column.chunks], type=column.type.storage_type
            )
        self._column = column
        self._rows = rows
        self._base = base
        self.names = self._paths() or NumberedNames(len(column) if rows is None else len(rows))
        if not len(self):
            raise ValueError("The dataset is empty.")

    def column(self, name: str) -> Sequence[Any]:
        """Return another column of the table."""
        if self.further is None:
            return super().column(name)
        there, read = self.further
        if name not in there:
            raise ValueError(f"The data: {unknown_name('column', name, there)}")
        values = read(name)
        return values if self._rows is None else [values[row] for row in self._rows.tolist()]

    def load(self, row: int, spec: DecodeSpec) -> Decoded:
        """Decode one cell; raises `ImageError` or OSError."""
        return self._decode(self._cell(row), spec)

    def examine(self, row: int, spec: DecodeSpec) -> Examined:
        """Decode one cell, and hash its bytes, those of the file it names, or its pixels."""
        cell = self._cell(row)
        decoded = self._decode(cell, spec)
        if isinstance(cell, str):
            return Examined(decoded, file_hash(os.path.join(self._base or "", cell)))
        return Examined(
            decoded, content_hash(cell if isinstance(cell, bytes) else np.asarray(cell))
        )

    def _cell(self, row: int) -> Any:
        cell = self._column[int(row if self._rows is None else self._rows[row])].as_py()
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        return _inside_archive(cell) if isinstance(cell, str) and "://" in cell else cell

    def _decode(self, cell: Any, spec: DecodeSpec) -> Decoded:
        if cell is None:
            raise ImageError("no image in this row")
        if isinstance(cell, bytes):
            return decode_bytes(cell, spec)
        if isinstance(cell, str):
            path = os.path.join(self._base or "", cell)
            if not os.path.isfile(path):
                raise ImageError(f"its file {cell!r} is missing")
            return decode(path, spec)
        values = np.asarray(cell)
        wide = spec.value_range is not None and self._is_wide()
        if (
            not wide
            and values.dtype.kind in "iu"
            and values.size
            and values.min() >= 0
            and values.max() <= 255
        ):
            values = values.astype(np.uint8)
        return fit_array(values, spec)

    def _is_wide(self) -> bool:
        """Whether the column says that its whole numbers have more than 8 bits; int64 is what
        Python's become.
        """
        import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]

        kind = self._column.type
        while hasattr(kind, "value_type"):
            kind = kind.value_type
        return kind in (pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.uint64())

    def sizes(self) -> np.ndarray:
        """Return the lengths of the encoded images in bytes, int64 (n,); of pixels and paths, a
        hash.
        """
        import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
        import pyarrow.compute as pc  # type: ignore[import-untyped,unused-ignore]

        column = self._field("bytes") if pa.types.is_struct(self._column.type) else self._column
        if column is not None and (
            pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)
        ):
            lengths = pc.fill_null(pc.binary_length(column), 0)
            sizes = np.concatenate(
                [np.asarray(chunk, dtype=np.int64) for chunk in lengths.chunks]
                or [np.zeros(0, np.int64)]
            )
        else:
            sizes = np.array(
                [
                    content_hash(np.frombuffer(repr(c.as_py()).encode(), np.uint8))
                    for c in self._column
                ]
            )
        return sizes if self._rows is None else sizes[self._rows]

    def _field(self, name: str) -> Any:
        import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
        import pyarrow.compute as pc  # type: ignore[import-untyped,unused-ignore]

        kind = self._column.type
        return (
            pc.struct_field(self._column, name)
            if pa.types.is_struct(kind) and kind.get_field_index(name) >= 0
            else None
        )

    def _paths(self) -> Names | None:
        """File names, if every row has its own."""
        column = self._field("path")
        if column is None or column.null_count:
            return None
        paths = column.to_pylist()
        paths = paths if self._rows is None else [paths[row] for row in self._rows]
        names = [os.path.basename(path).encode() for path in paths]
        return PackedNames(names) if len(set(names)) == len(names) and all(names) else None


_LOCAL = frozenset(("zip", "tar", "gzip", "bz2", "xz", "file", "local"))


def _inside_archive(address: str) -> bytes:
    """Read a file within a local archive, which 🤗 datasets writes as
    zip://a.png::/path/to/pictures.zip.

    Raises:
        ImageError: If it lies on another machine, or cannot be read.
    """
    import fsspec  # type: ignore[import-untyped,unused-ignore]

    kinds = {part.split("://", 1)[0] for part in address.split("::") if "://" in part}
    if not kinds <= _LOCAL:
        raise ImageError(
            f"it lies at {address[:200]!r}: download it first, only local files and archives are"
            " read"
        )
    try:
        with fsspec.open(address, "rb") as file:
            return bytes(file.read())
    except (OSError, KeyError, ValueError) as error:
        raise ImageError(
            f"its file {address[:200]!r} cannot be read: {type(error).__name__}"
        ) from None


def _pick(
    columns: Sequence[str],
    images: Sequence[str],
    labels: str,
    asked: tuple[str | None, str | None],
    where: str,
) -> tuple[str, str | None]:
    """Choose the image and the label column; `images` are columns that are images by their type."""
    image = choose_column("image", asked[0], [*IMAGE_NAMES], columns, where) or (
        images[0] if len(images) == 1 else None
    )
    if image is None:
        raise ValueError(
            f"{where} has no column named image. There are: {', '.join(columns)}. Pass"
            f" {option('image_column')}."
        )
    rest = [name for name in columns if name != image]
    return image, (
        None if labels == "none" else choose_column("label", asked[1], LABEL_NAMES, rest, where)
    )


def from_hf(
    data: Any, labels: str, image_column: str | None, label_column: str | None, insist: bool = False
) -> TableSource:
    """Open a `datasets.Dataset`; its transform or format, if any, is not applied (and a note says
    so).
    """
    features = data.features
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    image, label = _pick(
        list(features), images, labels, (image_column, label_column), "The dataset"
    )
    indices = getattr(data, "_indices", None)
    rows = None if indices is None else np.asarray(indices.column(0)).astype(np.int64)
    source = TableSource(data.data.column(image), rows)
    source.further = (list(features), lambda name: _words_of(data, name))
    if (data.format or {}).get("type") == "custom":
        source.notes.append(
            "the transform set on the dataset is not applied: images are fitted here"
        )
    if label is not None:
        names = getattr(features[label], "names", None)
        column = data.data.column(label)
        values = _label_values(column if rows is None else column.take(rows))
        source.labels, source.class_names = make_labels(
            values, names, insist or label_column is not None, source.notes
        )
    return source


def _words_of(data: Any, name: str) -> list[Any]:
    """Return a column of a 🤗 dataset, classes by their names."""
    values: list[Any] = data.data.column(name).to_pylist()
    names = getattr(data.features[name], "names", None)
    return values if names is None else [None if v is None or v < 0 else names[v] for v in values]


def _read_one(files: Sequence[Path], name: str) -> list[Any]:
    """Return a column of parquet files."""
    import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]

    parts = [pq.read_table(file, columns=[name], use_threads=False) for file in files]
    return [value for part in parts for value in part.column(name).to_pylist()]


def _label_values(column: Any) -> list[Any]:
    """Return the values of a column; of one whose type makes no labels (images, lists of pixels)
    the first only.
    """
    import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]

    kind = column.type
    nested = pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType)
    if not nested:
        values: list[Any] = column.to_pylist()
        return values
    lists = pa.types.is_list(kind) and not pa.types.is_nested(kind.value_type)
    return column.to_pylist() if lists else [Odd(f"of type {kind}")] * len(column)


def from_arrow(
    table: Any,
    labels: str,
    image_column: str | None,
    label_column: str | None,
    insist: bool = False,
) -> TableSource:
    """Open a `pyarrow.Table`."""
    image, label = _pick(table.column_names, [], labels, (image_column, label_column), "The table")
    source = TableSource(table.column(image))
    source.further = (list(table.column_names), lambda name: table.column(name).to_pylist())
    if label is not None:
        values = _label_values(table.column(label))
        source.labels, source.class_names = make_labels(
            values, None, insist or label_column is not None, source.notes
        )
    return source


def from_parquet(
    files: Sequence[Path],
    labels: str,
    image_column: str | None,
    label_column: str | None,
    insist: bool = False,
) -> TableSource:
    """Open parquet files of one schema; the encoded images are held in RAM.

    Raises:
        ValueError: If a file is damaged, columns are missing, or the files do not fit in RAM.
    """
    import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
    import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]

    total = sum(file.stat().st_size for file in files)
    if total > available_memory() * 0.7:
        raise ValueError(
            f"The parquet files hold {total / 1e9:.1f} GB, more than this process may use. Convert"
            " them once: datasets.load_dataset('parquet', data_files=...).save_to_disk(folder),"
            " and open that folder."
        )
    where = files[0].name if len(files) == 1 else f"{files[0].name} … {files[-1].name}"
    tables, chosen = [], None
    for file in files:
        try:
            columns = pq.read_schema(file).names
            if chosen is None:
                chosen = _pick(
                    columns, _typed_images(file), labels, (image_column, label_column), where
                )
            wanted = [name for name in chosen if name]
            missing = [name for name in wanted if name not in columns]
            if missing:
                raise ValueError(f"{file} has no column {missing[0]!r}, which {files[0].name} has.")
            tables.append(pq.read_table(file, columns=wanted, use_threads=False))
        except (pa.ArrowInvalid, pa.ArrowIOError, OSError) as error:
            raise ValueError(f"{file} is no readable parquet file: {error}") from None
    assert chosen is not None
    table = pa.concat_tables([t.replace_schema_metadata(None) for t in tables])
    source = TableSource(table.column(chosen[0]), base=files[0].parent)
    source.further = (list(pq.read_schema(files[0]).names), lambda name: _read_one(files, name))
    if chosen[1] is not None:
        feature = _features(tables[0].schema).get(chosen[1], {})
        names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
        values = _label_values(table.column(chosen[1]))
        source.labels, source.class_names = make_labels(
            values, names, insist or label_column is not None, source.notes
        )
    return source


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Read the column types that 🤗 datasets notes in a parquet file."""
    try:
        return dict(json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, ValueError, TypeError):
        return {}


def _typed_images(file: Path) -> list[str]:
    import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]

    return [
        name
        for name, feature in _features(pq.read_schema(file)).items()
        if feature.get("_type") == "Image"
    ]
