"""Header names that are not UTF-8: aiokafka raises for them, and its consumer never gets past such a record.

aiokafka's decoder in C decodes names strictly and offers no other way. So the fetcher gets a
`MemoryRecords` of ours. It reads with the decoder in C. Only if that meets such a name, it reads
the batch again with the library's decoder in Python and escapes the names. aiokafka has no hook for
this, so `install` replaces a name in its module, for all its consumers in this process. The only
difference for them is that such records can be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Any, Final, cast

from aiokafka.consumer import fetcher  # type: ignore[import-untyped]
from aiokafka.record import default_records, memory_records  # type: ignore[import-untyped]
from typing_extensions import override

_LOG_HEADER: Final = Struct(">qi")


def install() -> None:
    """Let aiokafka's consumers read such records; may be called again."""
    fetcher.MemoryRecords = ForgivingRecords


class ForgivingRecords:
    """The batches of one partition in one answer, with the interface of aiokafka's `MemoryRecords`."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._records = memory_records.MemoryRecords(data)

    def has_next(self) -> bool:
        """Whether there is one more batch."""
        return bool(self._records.has_next())

    def size_in_bytes(self) -> int:
        """Bytes of all batches together, including a cut last batch."""
        return int(self._records.size_in_bytes())

    def next_batch(self) -> Any:
        """Return the next batch."""
        batch = self._records.next_batch()
        # Control batches are iterated by their one record, and batches before Kafka 0.11 have no
        # headers.
        if batch is None or batch.producer_id is None or batch.is_control_batch:
            return batch
        return _Batch(batch, self._data)


class _Batch:
    __slots__ = ("_batch", "_data")

    def __init__(self, batch: Any, data: bytes) -> None:
        self._batch = batch
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[Any]:
        last = -1
        try:
            for record in self._batch:
                yield record
                last = record.offset
        except UnicodeDecodeError:
            again = _read_forgivingly(self._data, self._batch.base_offset)
            yield from (record for record in again if record.offset > last)


class _ForgivingBytes(bytearray):
    """Decodes any bytes; the batch's decoder calls `decode` for header names only."""

    @override
    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return _ForgivingBytes(found) if isinstance(key, slice) else found

    @override
    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return super().decode(encoding, "backslashreplace")


def _read_forgivingly(data: bytes, base_offset: int) -> Iterator[Any]:
    # The decoder in C hides its bytes. A batch begins with its first offset and its length.
    at = 0
    while _LOG_HEADER.unpack_from(data, at)[0] != base_offset:
        at += _LOG_HEADER.size + _LOG_HEADER.unpack_from(data, at)[1]
    end = at + _LOG_HEADER.size + _LOG_HEADER.unpack_from(data, at)[1]
    batch: Any = default_records._DefaultRecordBatchPy(data[at:end])  # noqa: SLF001
    records = iter(batch)  # this decompresses
    batch._buffer = _ForgivingBytes(batch._buffer)  # noqa: SLF001
    return cast("Iterator[Any]", records)
