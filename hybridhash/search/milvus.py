"""Milvus: search in a server or cluster, given its address, or in a file, by Milvus Lite."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridhash._checks import check_integer
from hybridhash._moved import renamed_arguments, renamed_attribute
from hybridhash.codes import MAX_BITS, HashCodes
from hybridhash.search.ids import Ids, as_numbers, named, not_held
from hybridhash.search.interface import (
    as_ranges,
    check_model_id,
    nearest_first,
    new_rows,
    query_rows,
    real_queries,
    rescored,
    result_count,
)
from hybridhash.search.manifest import check_content, check_replaceable, read_manifest, write_manifest
from hybridhash.search.milvus_connection import Connection
from hybridhash.search.sorted_pairs import Array

__all__ = ["MilvusIndex"]

_KINDS = {"flat": "BIN_FLAT", "ivf": "BIN_IVF_FLAT"}
_LIMIT = 16_384  # most results of one query: Milvus refuses more
_NAME_BYTES = 4096  # of the longest string id
_HITS = 1 << 20  # most results of one request, so that an answer stays under the limit of gRPC


class MilvusIndex:
    """A :class:`SearchIndex` on a collection of Milvus (extra ``milvus``).

    ``uri`` decides whether the same calls reach one server, a cluster behind an address, or a file. The codes
    are stored by the server, so :meth:`save` notes only how to find them. An existing collection is opened;
    it must have the same bits, kind and model.

    A request that fails because the server is down or busy is repeated after pauses that double from 0.5 to 8
    seconds; then an error says what failed. Adding is idempotent by id: a code that is added twice is stored
    once, so after an error the same ``add`` continues where it stopped.

    Threads and processes may add and search at the same time. Only codes without ids must be added by one
    process: two would give the same numbers to different codes. Milvus has no transactions that could prevent
    it. :meth:`add` looks for codes of others around each batch and raises if it finds some, but it cannot see
    two processes that store the same numbers within the same milliseconds. Ids, such as names of files, have
    no such limit.

    Args:
        uri: ``http(s)://host:port`` or ``host:port`` of a server or cluster, or the path of a file that ends
            in ``.db``, for Milvus Lite. Milvus Lite must be version 2.5.1 and has the kind ``"flat"`` only.
        collection: The name of the collection, of letters, digits and underscores.
        bits: The code length, 1 to 4,096. Codes are padded with zero bits to whole bytes, which changes no
            distance.
        kind: ``"flat"`` (BIN_FLAT, exact) or ``"ivf"`` (BIN_IVF_FLAT, approximate).
        model_id: The name of the model that gives the codes, any text; kept with the collection and compared.
        nlist: For ivf, the number of lists, 1 to 65536. By default 1024.
        nprobe: For ivf, the number of lists searched for each query, at most ``nlist``. By default a 32nd of
            them.
        token: ``"user:password"`` or a token, if the server asks for one. It is never saved.
        create: Whether to make the collection if it does not exist, instead of raising.
        timeout: Seconds for one attempt of a request.
        retries: The number of times that a failed request is repeated.
        batch_size: The number of codes in one request of :meth:`add`.

    Raises:
        ImportError: pymilvus is not installed; for a file, Milvus Lite is missing or has another version.
        FileNotFoundError: The folder of the file does not exist, or the collection does not and ``create`` is
            False.
        ConnectionError: The server cannot be reached.
        PermissionError: The server wants another token.
        TypeError, ValueError: An argument is out of range, or the collection holds other codes.

    Example:
        >>> index = MilvusIndex("http://localhost:19530", "photos", bits=64)  # doctest: +SKIP
        >>> index.add(codes)  # doctest: +SKIP
        >>> distances, ids = index.search(query, top_k=100)  # doctest: +SKIP
    """

    model = renamed_attribute("model", "model_id")

    @renamed_arguments(model="model_id")
    def __init__(
        self,
        uri: str | os.PathLike[str],
        collection: str,
        bits: int,
        kind: str = "flat",
        *,
        model_id: str | None = None,
        nlist: int | None = None,
        nprobe: int | None = None,
        token: str = "",
        create: bool = True,
        timeout: float = 30.0,
        retries: int = 5,
        batch_size: int = 10_000,
    ) -> None:
        self.bits = check_integer("bits", bits, 1, MAX_BITS)
        if kind not in _KINDS:
            raise ValueError(f"unknown kind {kind!r} of Milvus index: use {', '.join(map(repr, _KINDS))}")
        if kind != "ivf" and (nlist, nprobe) != (None, None):
            raise ValueError(f"nlist and nprobe are options of kind 'ivf', but kind={kind!r} was given")
        check_model_id(None, model_id)
        self.kind = kind
        self.model_id = model_id
        self.collection = collection
        self._nlist = check_integer("nlist", 1024 if nlist is None else nlist, 1, 65_536)
        self._nprobe = check_integer("nprobe", nprobe or -(-self._nlist // 32), 1, self._nlist)
        self._batch_size = check_integer("batch_size", batch_size, 1)
        self._adding = threading.Lock()  # or two threads would give codes the same numbers
        self._unfinished: tuple[bytes, int] | None = None  # codes of a failed add, and their first number
        self._has_names = True  # collections of older versions have no field for them
        self._connection = Connection(uri, token, timeout, retries)
        if self._connection.lite and kind == "ivf":
            raise ValueError("Milvus Lite has no BIN_IVF_FLAT: use kind='flat', or a Milvus server")
        self._connection.open()
        if self._request("has_collection", self.collection):
            self._check_collection()
        elif create:
            self._create_collection()
        else:
            raise FileNotFoundError(f"{self._where()} does not exist: check the name, or create it by adding")
        self._request("load_collection", self.collection)

    @renamed_arguments(model="model_id")
    def add(self, codes: Tensor | HashCodes, *, ids: Ids | None = None, model_id: str | None = None) -> None:
        """Add codes under their ids, in batches; codes without ids are numbered from ``len(index)`` on.

        A code replaces the one with its id. At the end all ids are looked up. After an error, repeat the
        call: it stores the missing codes and none twice. In a new process that holds for codes with ids;
        continue with ``add(codes[len(index):])`` if they have none.

        Args:
            codes: Codes as :class:`SearchIndex` describes.
            ids: Their ids, which replace those in ``codes``: integers, or strings of at most 4,096 bytes.
            model_id: The model of the codes.

        Raises:
            ConnectionError: The server stayed down or refused; the message says how many codes are stored.
            RuntimeError: The server took all codes but does not have them, or another process adds codes
                without ids at the same time. The message says how many codes are stored.
            TypeError, ValueError: The codes have other bits, another model or NaN, an id is negative or
                occurs twice, or numbers for codes without ids are ids of the collection already. Nothing is
                added then.
        """
        packed, numbers, names = new_rows(codes, self.bits, self.model_id, model_id, ids)
        if len(packed) == 0:
            return
        with self._adding:
            if names is not None:
                assert numbers is not None
                self._check_names(numbers, names)
            if numbers is None:
                self._add_numbered(packed)
            else:
                self._add(packed, numbers, names)

    def remove(self, ids: Ids) -> None:
        """Remove the codes of these ids.

        Raises:
            ConnectionError: The server stayed down or refused; some may be removed, ask :meth:`contains`.
            TypeError, ValueError: They are no ids, or one is not in the collection. Nothing is removed then.
        """
        numbers, names = as_numbers(ids)
        held = self.contains(ids).numpy()
        if not held.all():
            raise not_held(self._where(), numbers, names, np.flatnonzero(~held))
        for rows in _slices(len(numbers), self._batch_size):
            self._request("delete", self.collection, ids=numbers[rows].tolist())

    def contains(self, ids: Ids) -> Tensor:
        """Return which of the ids the collection holds: bool ``(len(ids),)``.

        Raises:
            ConnectionError: The server stayed down or refused.
            TypeError, ValueError: They are no ids.
        """
        numbers, _ = as_numbers(ids)
        held = [row["id"] for row in self._rows(numbers, "id")]
        return torch.from_numpy(np.isin(numbers, np.array(held, np.int64)))

    def names(self, ids: Tensor) -> list[Any]:
        """Return the strings of ids in a result, in lists as ``ids.tolist()`` gives; None for -1.

        Raises:
            ConnectionError: The server stayed down or refused.
            ValueError: An id has no string.
        """
        numbers = np.unique(ids.numpy())
        rows = self._rows(numbers[numbers >= 0], "name") if self._has_names else ()
        return named(ids, {row["id"]: row["name"] for row in rows if row["name"]})

    @renamed_arguments(k="top_k", model="model_id")
    def search(
        self,
        codes: Tensor | HashCodes,
        top_k: int | None,
        *,
        rescore: int = 1,
        among: Ids | None = None,
        model_id: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Find the ``top_k`` nearest codes of each query, as :meth:`SearchIndex.search` describes.

        With ``rescore`` above 1, the codes of the candidates are fetched in a second request.

        Raises:
            ConnectionError: The server stayed down or refused.
            TypeError, ValueError: ``top_k`` or ``rescore`` is below 1, they ask for more than 16,384 results,
                the collection is empty, there is no query, the codes have other bits or another model, or
                ``rescore`` is above 1 and the queries are packed or not finite.
        """
        rescore = check_integer("rescore", rescore, 1)
        size = len(self)
        query = query_rows(codes, self.bits, size, self.model_id, model_id)
        values = real_queries(codes, rescore) if rescore > 1 else None
        chosen = None if among is None else as_numbers(among)[0]
        if chosen is not None:
            size = sum(1 for _ in self._rows(chosen, "id"))
        count = result_count(top_k, size)
        reach = min(rescore * count, size)
        if reach > _LIMIT:
            asked = f"top_k={top_k}" + (f" with rescore={rescore}" if rescore > 1 else "")
            raise ValueError(
                f"{asked} asks for {reach:,} results, Milvus gives at most {_LIMIT:,}: use FaissIndex"
            )
        distances, ids = self._nearest(query, reach, chosen)
        if values is None:
            return distances, ids
        return rescored(values, *self._candidates(ids.numpy()), count)

    @renamed_arguments(model="model_id")
    def range_search(
        self,
        codes: Tensor | HashCodes,
        radius: int,
        *,
        among: Ids | None = None,
        model_id: str | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Find all codes within ``radius``, as :meth:`SearchIndex.range_search` describes.

        If a query has more results than Milvus gives for one request, several requests of a part of the ids
        each find them.

        Raises:
            ConnectionError, TypeError, ValueError: ``radius`` is below 0; otherwise as in :meth:`search`.
        """
        query = query_rows(codes, self.bits, len(self), self.model_id, model_id)
        radius = min(check_integer("radius", radius, 0), self.bits)
        if among is not None:
            return as_ranges(self._hits_among(query, radius, as_numbers(among)[0]), self.bits)
        results = list(self._hits(query, _LIMIT, radius))
        for row, (_, ids) in enumerate(results):
            if len(ids) == _LIMIT:  # perhaps not all
                parts = list(self._halves(query[row : row + 1], radius, 0, 2**63 - 1, ids))
                all_distances = np.concatenate([part_distances for part_distances, _ in parts])
                all_ids = np.concatenate([part_ids for _, part_ids in parts])
                results[row] = (all_distances, all_ids)
        return as_ranges(results, self.bits)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Have the server write the collection to its disk, and note in ``folder`` where it is.

        ``manifest.json`` holds the address without user and password, the name of the collection, the bits,
        the kind, the model and the number of codes.

        Raises:
            ConnectionError: The server stayed down or refused.
            FileExistsError: The folder has a manifest of something else, such as encoded shards.
            OSError: The manifest cannot be written.
        """
        folder = Path(folder)
        check_replaceable(folder)
        self._request("flush", self.collection)
        folder.mkdir(exist_ok=True)
        manifest = {
            "uri": self._connection.public_uri,
            "collection": self.collection,
            "count": len(self),
            "bits": self.bits,
            "kind": self.kind,
            "model_id": self.model_id,
            "options": {"nlist": self._nlist, "nprobe": self._nprobe} if self.kind == "ivf" else {},
        }
        write_manifest(folder, "milvus", manifest)

    @classmethod
    @renamed_arguments(model="model_id")
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        uri: str | os.PathLike[str] | None = None,
        bits: int | None = None,
        model_id: str | None = None,
        token: str = "",
        timeout: float = 30.0,
        retries: int = 5,
    ) -> MilvusIndex:
        """Open the collection that :meth:`save` noted, and verify that it has all its codes.

        Args:
            folder: The folder of :meth:`save`.
            uri: The address of the collection, if it has changed.
            bits: The code length that the index must have. None means any.
            model_id: The model that the codes must come from. None means any.
            token: As in the class. It is not in the manifest.
            timeout: As in the class.
            retries: As in the class.

        Raises:
            FileNotFoundError: The folder has no manifest, or the server has no such collection.
            ValueError: The manifest is damaged, the index is of other bits or another model, or the
                collection has fewer codes than when it was saved.
            ImportError, ConnectionError, PermissionError: As in the class.
        """
        keys = ("uri", "collection", "count", "bits", "kind", "model_id", "options")
        manifest = read_manifest(folder, "milvus", keys)
        check_content(folder, manifest, bits, model_id)
        index = cls(
            manifest["uri"] if uri is None else uri,
            manifest["collection"],
            manifest["bits"],
            manifest["kind"],
            model_id=manifest["model_id"],
            **manifest["options"],
            token=token,
            create=False,
            timeout=timeout,
            retries=retries,
        )
        if len(index) < manifest["count"]:
            raise ValueError(
                f"{index._where()} has {len(index):,} codes, but had {manifest['count']:,} when it was "
                "saved: add what is missing again, or save it as it is"
            )
        return index

    def close(self) -> None:
        """Close the connection; the index cannot be used afterwards."""
        self.client.close()

    @property
    def client(self) -> Any:
        """The ``pymilvus.MilvusClient``."""
        return self._connection.client

    def __len__(self) -> int:
        return self._count("")

    def __repr__(self) -> str:
        where = f"{self._connection.public_uri!r}, {self.collection!r}"
        return f"MilvusIndex({where}, bits={self.bits}, kind={self.kind!r})"

    def _create_collection(self) -> None:
        from pymilvus import DataType

        client = self.client
        about = {"hybridhash": "codes", "bits": self.bits, "kind": self.kind, "model_id": self.model_id}
        schema = client.create_schema(
            auto_id=False, enable_dynamic_field=False, description=json.dumps(about)
        )
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("name", DataType.VARCHAR, max_length=_NAME_BYTES)  # "" if the id is a number
        schema.add_field("code", DataType.BINARY_VECTOR, dim=8 * -(-self.bits // 8))
        params = client.prepare_index_params()
        options = {"nlist": self._nlist} if self.kind == "ivf" else {}
        params.add_index("code", index_type=_KINDS[self.kind], metric_type="HAMMING", params=options)
        self._request(
            "create_collection",
            self.collection,
            schema=schema,
            index_params=params,
            consistency_level="Strong",  # a search sees what was added before it
        )

    def _check_collection(self) -> None:
        """Raise ValueError unless the existing collection holds codes of these bits, kind and model."""
        described = self._request("describe_collection", self.collection)
        self._has_names = any(field["name"] == "name" for field in described["fields"])
        try:
            about = json.loads(described["description"])
            content, bits, kind = about["hybridhash"], about["bits"], about["kind"]
            model_id = about["model_id"] if "model_id" in about else about["model"]  # older collections
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{self._where()} was not made by MilvusIndex: use another name for the collection"
            ) from None
        if (content, bits, kind) != ("codes", self.bits, self.kind):
            raise ValueError(
                f"{self._where()} holds codes of {bits} bits in an index of kind {kind!r}, not of "
                f"{self.bits} and {self.kind!r}: open it as it is, or use another name"
            )
        check_model_id(model_id, self.model_id)
        self.model_id = self.model_id if model_id is None else model_id

    def _add_numbered(self, packed: Array) -> None:
        """Store codes without ids under the next numbers, or those of a failed ``add`` of the same codes."""
        digest = hashlib.sha256(np.ascontiguousarray(packed).data).digest()
        if self._unfinished is not None and self._unfinished[0] == digest:
            start = self._unfinished[1]
        else:
            start = len(self)
            if self._held_between(start, start + len(packed)):
                raise ValueError(
                    f"{self._where()} holds ids from {start} on already, where codes without ids are to be "
                    "numbered: give the codes ids of their own. Nothing was added"
                )
        self._unfinished = (digest, start)
        self._add(packed, np.arange(start, start + len(packed)), None, numbered=True)
        self._unfinished = None

    def _check_numbers(self, numbers: Array, packed: Array, stored: int) -> None:
        """Raise RuntimeError if the collection holds other codes under some of these numbers."""
        wanted = dict(zip(numbers.tolist(), packed, strict=True))
        if any(row["code"][0] != wanted[row["id"]].tobytes() for row in self._rows(numbers, "code")):
            self._unfinished = None  # or the same call would overwrite the codes of the other process
            raise RuntimeError(
                f"{self._where()} has got codes of another process under the numbers from {numbers[0]} on. "
                f"Only one may add codes without ids. {stored:,} of these codes are known to be stored: add "
                f"codes[{stored}:] once the other has ended, or give codes ids"
            )

    def _held_between(self, start: int, stop: int) -> int:
        """Return how many codes the collection holds with ids from ``start`` to ``stop - 1``."""
        return self._count(f"id >= {start} and id < {stop}")

    def _add(self, packed: Array, ids: Array, names: list[str] | None, *, numbered: bool = False) -> None:
        """Store rows in batches and look all of them up."""
        stored = 0
        try:
            for rows in _slices(len(packed), self._batch_size):
                if numbered and self._held_between(ids[rows.start], ids[rows.stop - 1] + 1):
                    self._check_numbers(ids[rows], packed[rows], stored)
                pairs = zip(ids[rows].tolist(), packed[rows], strict=True)
                data: list[dict[str, Any]] = [{"id": number, "code": row.tobytes()} for number, row in pairs]
                if self._has_names:
                    for row, entry in enumerate(data, rows.start):
                        entry["name"] = "" if names is None else names[row]
                self._request("upsert", self.collection, data=data)
                if numbered:
                    # Another process that began at the same number stores batches with the same first one.
                    self._check_numbers(ids[rows][:1], packed[rows][:1], stored)
                stored += len(data)
            missing = sum(self._missing(ids[rows]) for rows in _slices(len(ids), self._batch_size))
        except OSError as error:
            again = " in this process" if numbered else ""
            kind = PermissionError if isinstance(error, PermissionError) else ConnectionError
            raise kind(
                f"{error}. {stored:,} of these {len(ids):,} codes are known to be stored: add the same codes "
                f"again{again}, none will be there twice"
            ) from error
        if missing:
            raise RuntimeError(
                f"{self._where()} lacks {missing:,} of the {len(ids):,} codes that it has just taken: add "
                "the same codes again, none will be there twice"
            )

    def _check_names(self, numbers: Array, names: list[str]) -> None:
        """Raise ValueError if the collection cannot take these strings as ids."""
        if not self._has_names:
            raise ValueError(
                f"{self._where()} was made by an older version, without a field for strings: give numbers as "
                "ids, or make a new collection"
            )
        for name in names:
            if not 0 < len(name.encode()) <= _NAME_BYTES:
                raise ValueError(f"string ids must have 1 to {_NAME_BYTES} bytes, got {name[:40]!r}")
        given = dict(zip(numbers.tolist(), names, strict=True))
        for row in self._rows(numbers, "name"):
            if row["name"] != given[row["id"]]:
                raise ValueError(
                    f"{self._where()} has {row['name'] or row['id']!r} under the number of the id "
                    f"{given[row['id']]!r}: rename one. Nothing was added"
                )

    def _conditions(self, ids: Array) -> Iterator[str]:
        """Yield filters that together are fulfilled by codes of these ids."""
        for rows in _slices(len(ids), min(self._batch_size, _LIMIT)):
            yield f"id in {ids[rows].tolist()}"

    def _rows(self, ids: Array, field: str) -> Iterator[dict[str, Any]]:
        """Yield the id and another field of those codes that the collection holds."""
        for condition in self._conditions(ids):
            yield from self._request("query", self.collection, filter=condition, output_fields=["id", field])

    def _missing(self, ids: Array) -> int:
        """Return how many of the ids the collection does not have."""
        if (np.diff(ids) == 1).all():
            return len(ids) - self._held_between(ids[0], ids[-1] + 1)
        return len(ids) - self._count(f"id in {ids.tolist()}")

    def _count(self, condition: str) -> int:
        """Return the number of codes that fulfil a condition; an empty one means all."""
        rows = self._request("query", self.collection, filter=condition, output_fields=["count(*)"])
        return int(rows[0]["count(*)"])

    def _nearest(self, query: Array, count: int, chosen: Array | None) -> tuple[Tensor, Tensor]:
        """Return distances and ids of the nearest codes of each query, all or those of chosen ids."""
        conditions = [""] if chosen is None else self._conditions(chosen)
        parts = [(np.zeros((len(query), count)), np.full((len(query), count), -1))]
        for condition in conditions if count else []:
            distances = np.zeros((len(query), count))
            ids = np.full((len(query), count), -1)
            for row, (query_distances, query_ids) in enumerate(self._hits(query, count, None, condition)):
                distances[row, : len(query_ids)] = query_distances
                ids[row, : len(query_ids)] = query_ids
            parts.append((distances, ids))
        distances = np.concatenate([part_distances for part_distances, _ in parts], axis=1)
        ids = np.concatenate([part_ids for _, part_ids in parts], axis=1)
        best_distances, best_ids = nearest_first(distances, ids, self.bits)
        return best_distances[:, :count].contiguous(), best_ids[:, :count].contiguous()

    def _candidates(self, ids: Array) -> tuple[Array, Array]:
        """Return the codes of ids ``(Nq, candidates)``, and the ids, -1 where one was removed meanwhile."""
        distinct, places = np.unique(ids, return_inverse=True)
        packed = np.zeros((len(distinct), -(-self.bits // 8)), np.uint8)
        found = np.zeros(len(distinct), bool)
        for row in self._rows(distinct[distinct >= 0], "code"):
            place = np.searchsorted(distinct, row["id"])
            packed[place] = np.frombuffer(row["code"][0], np.uint8)
            found[place] = True
        places = places.reshape(ids.shape)
        return packed[places], np.where(found[places], ids, -1)

    def _hits(
        self, query: Array, limit: int, radius: int | None = None, condition: str = ""
    ) -> Iterator[tuple[Array, Array]]:
        """Yield the distances and ids that Milvus finds for each query."""
        params: dict[str, int] = {"nprobe": self._nprobe} if self.kind == "ivf" else {}
        if radius is not None:
            params["radius"] = radius + 1  # Milvus means "nearer than", we mean "at most"
        for rows in _slices(len(query), max(1, min(_HITS // limit, 1000))):
            answer = self._request(
                "search",
                self.collection,
                data=[row.tobytes() for row in query[rows]],
                anns_field="code",
                limit=limit,
                filter=condition,
                search_params={"metric_type": "HAMMING", "params": params},
            )
            for hits in answer:
                distances = np.array([hit["distance"] for hit in hits], np.float64)
                yield distances, np.array([hit["id"] for hit in hits], np.int64)

    def _hits_among(self, query: Array, radius: int, ids: Array) -> Iterator[tuple[Array, Array]]:
        """Yield the distances and ids within ``radius`` of each query, of codes of some ids."""
        parts = [list(self._hits(query, _LIMIT, radius, condition)) for condition in self._conditions(ids)]
        for row in range(len(query)):
            distances = [np.empty(0), *(part[row][0] for part in parts)]
            found = [np.empty(0, np.int64), *(part[row][1] for part in parts)]
            yield np.concatenate(distances), np.concatenate(found)

    def _halves(
        self, query: Array, radius: int, low: int, high: int, sample: Array
    ) -> Iterator[tuple[Array, Array]]:
        """Yield, in parts, what one query finds among ids ``low..high``, cut at the median of a sample."""
        middle = int(np.partition(sample, len(sample) // 2)[len(sample) // 2])
        for first, last in ((low, middle - 1), (middle, high)):
            ((distances, ids),) = self._hits(query, _LIMIT, radius, f"id >= {first} and id <= {last}")
            if len(ids) < _LIMIT:
                yield distances, ids
            else:
                yield from self._halves(query, radius, first, last, ids)

    def _request(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self._connection.request(self._where(), name, *args, **kwargs)

    def _where(self) -> str:
        """Return what errors call the collection."""
        return f"collection {self.collection!r} at {self._connection.public_uri}"


def _slices(size: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, size)) for start in range(0, size, step))
