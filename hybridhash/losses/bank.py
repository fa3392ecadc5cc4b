"""Memories of codes: the latest code of every training item, or the latest codes of a stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hybridhash._checks import check_flags, check_integer
from hybridhash.labels import as_labels, to_multi_hot
from hybridhash.losses._distributed import gather_rows, rank, world_size
from hybridhash.losses._inputs import check_codes

__all__ = ["CodeBank", "CodeMemory", "CodeQueue", "required_with"]


class CodeMemory(nn.Module):
    """Codes and labels in buffers that a batch is compared with: what a bank and a queue share.

    Attributes:
        codes: ``(num_samples, bits)`` of ``dtype``.
        labels: int64 ``(num_samples,)``, -1 where unknown, or bool ``(num_samples, num_classes)``.
        seen: bool ``(num_samples,)``, True for rows that were written.
        kind: what kind of codes were written, None before the first; see :meth:`write`.
        needs_indices: whether a batch has rows of its own, which the caller must give.
    """

    needs_indices: bool
    codes: Tensor
    labels: Tensor
    seen: Tensor

    def __init__(
        self,
        num_samples: int,
        bits: int,
        num_classes: int | None,
        *,
        count_unseen: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        check_integer("num_samples", num_samples, 1)
        check_integer("bits", bits, 1)
        if num_classes is not None:
            check_integer("num_classes", num_classes, 1)
        check_flags(count_unseen=count_unseen)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point type, got {dtype}: real-valued codes are stored")
        self.count_unseen = count_unseen
        self.kind: str | None = None
        self.register_buffer("codes", torch.zeros(num_samples, bits, dtype=dtype))
        labels = torch.full((num_samples,), -1)
        if num_classes is not None:
            labels = torch.zeros(num_samples, num_classes, dtype=torch.bool)
        self.register_buffer("labels", labels)
        self.register_buffer("seen", torch.zeros(num_samples, dtype=torch.bool))

    @property
    def num_samples(self) -> int:
        """Rows of the bank."""
        return self.codes.shape[0]

    @property
    def bits(self) -> int:
        """Length of a code."""
        return self.codes.shape[1]

    @property
    def num_classes(self) -> int | None:
        """Columns of the labels; None if the bank holds class ids."""
        return None if self.labels.ndim == 1 else self.labels.shape[1]

    def check(self, indices: Tensor | None, codes: Tensor, labels: Tensor) -> tuple[Tensor | None, Tensor]:
        """Check that a batch fits, and return its rows and its labels in the form that is held.

        Args:
            indices: integers ``(B,)``, or None for a batch that is not in the bank; a queue ignores them.
            codes: floating-point ``(B, bits)``.
            labels: as :func:`hybridhash.labels.as_labels` returns them.

        Returns:
            int64 ``(B,)`` or None, and labels ``(B,)`` or ``(B, num_classes)``; both on the bank's device.

        Raises:
            IndexError, TypeError, ValueError: as :meth:`CodeBank.update`.
        """
        bits = self.codes.shape[1]
        if check_codes(codes).shape[1] != bits:
            raise ValueError(f"codes have {codes.shape[1]} bits, the bank was made for {bits}")
        if codes.device != self.codes.device:
            raise ValueError(
                f"codes are on {codes.device}, the bank is on {self.codes.device}: use .to(device)"
            )
        if self.labels.ndim == 1 and labels.ndim == 2:
            raise ValueError(
                f"the bank holds class ids, got multi-hot labels of shape {tuple(labels.shape)}: "
                f"make it with CodeBank(..., num_classes={labels.shape[1]})"
            )
        if self.labels.ndim == 2 and labels.ndim == 1:
            labels = to_multi_hot(labels, self.labels.shape[1])
        if labels.shape[1:] != self.labels.shape[1:]:
            raise ValueError(
                f"labels have {labels.shape[1]} classes, the bank was made for {self.labels.shape[1]}"
            )
        labels = labels.to(self.codes.device)
        if indices is None and self.needs_indices:
            return None, labels
        rows = None
        if self.needs_indices:
            if (
                not isinstance(indices, Tensor)
                or indices.dtype.is_floating_point
                or indices.dtype == torch.bool
            ):
                got = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
                raise TypeError(
                    f"indices must be a tensor of integers (row numbers of the data set), got {got}"
                )
            if indices.shape != codes.shape[:1]:
                raise ValueError(
                    f"indices must have shape ({codes.shape[0]},), one for each code, "
                    f"got {tuple(indices.shape)}"
                )
            rows = indices.to(device=self.codes.device, dtype=torch.int64)
            num_samples = self.codes.shape[0]
            outside = (rows < 0) | (rows >= num_samples)
            if bool(outside.any()):
                raise IndexError(
                    f"index {int(rows[outside][0])} is outside the bank of {num_samples} rows: "
                    "make the bank as large as the training set, and give row numbers of that set"
                )
        if not bool(codes.to(self.codes.dtype).isfinite().all()):
            raise ValueError(
                f"codes contain NaN, or values that are infinite in {self.codes.dtype}, which would stay in "
                "the bank: the training has diverged, or the bank needs a wider dtype"
            )
        return rows, labels

    def write(
        self, rows: Tensor | None, codes: Tensor, labels: Tensor, *, kind: str | None = "codes"
    ) -> Tensor:
        """Write a batch that :meth:`check` has passed; the arguments are its results.

        Under ``torch.distributed`` the rows of all processes are written.

        Args:
            rows: see :meth:`check`.
            codes: ``(B, bits)``.
            labels: see :meth:`check`.
            kind: What the codes are: ``"codes"``, the outputs of the network that is trained, or another
                name. A memory takes one kind only; losses that store different kinds cannot share it.

        Returns:
            int64 ``(B,)``, the rows that hold the batch now.

        Raises:
            ValueError: codes of another kind than those that are held.
        """
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load as every module does, and say what to do about a memory of another size."""
        super()._load_from_state_dict(state_dict, prefix, *rest)
        errors: list[str] = rest[-1]
        for name in ("codes", "labels"):
            own, stored = getattr(self, name), state_dict.get(prefix + name, getattr(self, name))
            if stored.shape != own.shape:
                errors.append(
                    f"{name} of the {type(self).__name__} are {tuple(own.shape)}, in the state dict "
                    f"{tuple(stored.shape)}: make it with the rows, bits and num_classes that were saved"
                )

    def _other_kind(self, kind: str | None) -> ValueError:
        return ValueError(
            f"the bank holds {self.kind}, and this loss would store {kind}: make a bank for each loss"
        )


class CodeBank(CodeMemory):
    """Latest code and label of every training item, so that a batch can be compared with the whole set.

    All state is in buffers: ``state_dict``, ``.to(device)`` and resuming a run work. Under
    ``torch.distributed`` an update writes the rows of all ranks, so the banks of all ranks stay equal; do not
    let ``DistributedDataParallel`` broadcast them as well (``broadcast_buffers=False`` saves that traffic).

    Args:
        num_samples: rows, one for each training item.
        bits: length of a code.
        num_classes: None for class ids ``(N,)``; C for multi-hot labels ``(N, C)`` (class ids are then
            accepted too and are converted).
        count_unseen: what a row is worth that was never written. False: it is left out of every pair. True:
            it is a zero code without label, dissimilar to everything, as in the public HybridHash code.
        dtype: of the stored codes. float16 and bfloat16 halve the memory and round the codes; the loss
            is computed in float32 in any case.

    Attributes:
        codes: ``(num_samples, bits)`` of ``dtype``.
        labels: int64 ``(num_samples,)``, -1 where unknown, or bool ``(num_samples, num_classes)``.
        seen: bool ``(num_samples,)``, True for rows that were written.
        kind: what kind of codes were written, None before the first; see :meth:`write`.

    Raises:
        ValueError: a size below 1.
        TypeError: ``dtype`` is not a floating-point type.

    Example:
        >>> bank = CodeBank(1000, bits=4)
        >>> bank.update(torch.tensor([7, 9]), torch.ones(2, 4), torch.tensor([0, 1]))
        >>> bank.codes[7], int(bank.labels[9]), int(bank.seen.sum())
        (tensor([1., 1., 1., 1.]), 1, 2)
    """

    needs_indices = True

    def __init__(
        self,
        num_samples: int,
        bits: int,
        num_classes: int | None = None,
        *,
        count_unseen: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(num_samples, bits, num_classes, count_unseen=count_unseen, dtype=dtype)

    def update(self, indices: Tensor, codes: Tensor, labels: Tensor) -> None:
        """Write the codes and labels of a batch; nothing is differentiated.

        Args:
            indices: integers ``(B,)``, rows to write. If a row occurs several times, with one label, its last
                occurrence counts (under ``torch.distributed``: in the order of the processes).
            codes: ``(B, bits)``, any floating-point type.
            labels: ``(B,)`` class ids, or ``(B, num_classes)`` multi-hot if the bank was made for them.

        Raises:
            IndexError: an index outside the bank.
            TypeError: indices that are not integers, codes that are not floating-point.
            ValueError: shapes that do not fit the bank or each other, codes that are not finite in the
                bank's dtype (they would stay in the bank), a label that contradicts the one that the bank
                holds for the row, a row that occurs with two labels, tensors on another device.
        """
        labels = as_labels(labels, length=check_codes(codes).shape[0])
        rows, labels = self.check(indices, codes, labels)
        self.write(rows, codes, labels, kind=self.kind)

    @torch.no_grad()
    def write(
        self, rows: Tensor | None, codes: Tensor, labels: Tensor, *, kind: str | None = "codes"
    ) -> Tensor:
        """Write a batch into its rows; see :meth:`CodeMemory.write`.

        Raises:
            ValueError: no rows, codes of another kind than the bank holds, a label that contradicts the one
                that the bank holds for the row, a row that occurs with two labels. Nothing is written then.
        """
        if rows is None:
            raise ValueError("a bank is written by row: give indices")
        if self.kind not in (None, kind):
            raise self._other_kind(kind)
        own = rows
        if world_size() > 1:
            rows, codes, labels = gather_rows(rows), gather_rows(codes.detach()), gather_rows(labels)
        stored = self.labels[rows]
        contradicts = (stored >= 0) & (labels != stored)
        if stored.ndim == 2:
            contradicts = stored.any(1) & (labels != stored).any(1)
        if bool(contradicts.any()):
            raise ValueError(
                f"the label of row {int(rows[contradicts][0])} differs from the one in the bank: indices "
                "must be row numbers of the training set; for images of another set, such as the validation "
                "set, call loss.eval() or use torch.no_grad(), and the bank is not written"
            )
        # Of a row that occurs several times, the last occurrence counts.
        ordered, order = torch.sort(rows, stable=True)
        last = torch.ones_like(ordered, dtype=torch.bool)
        last[:-1] = ordered[1:] != ordered[:-1]
        differs = labels[order][1:] != labels[order][:-1]
        if differs.ndim == 2:
            differs = differs.any(1)
        relabelled = ordered[:-1][differs & ~last[:-1]]
        if len(relabelled):
            raise ValueError(
                f"row {int(relabelled[0])} occurs twice in the batch, with two labels: indices "
                "must be row numbers of the training set, whose items have one label each"
            )
        self.kind = kind
        rows, source = ordered[last], order[last]
        self.codes[rows] = codes[source].to(self.codes.dtype)
        self.labels[rows] = labels[source]
        self.seen[rows] = True
        return own

    def extra_repr(self) -> str:
        return (
            f"num_samples={self.num_samples}, bits={self.bits}, num_classes={self.num_classes}, "
            f"count_unseen={self.count_unseen}"
        )


class CodeQueue(CodeMemory):
    """The latest codes and labels of a stream, first in, first out: a memory without row numbers.

    For data that has no rows: an ``IterableDataset``, WebDataset shards, a set too large for a bank. A loss
    takes it wherever it takes a :class:`CodeBank`, and needs no ``indices``. In training the batch is written
    first and then compared with the queue, itself included, as with a bank; ``exclude_self=True`` leaves out
    the pair of an item with itself. In evaluation mode and without gradients the queue is only read. An item
    that comes again while it is in the queue is in it twice; but a batch that equals the newest codes is not
    written again, so that several losses can share a queue.

    All state is in buffers. Under ``torch.distributed`` the batches of all ranks enter in the order of the
    ranks, so the queues of all ranks stay equal.

    Args:
        size: rows, the number of codes that are kept; at least one batch of all processes.
        bits: length of a code.
        num_classes: None for class ids ``(N,)``; C for multi-hot labels ``(N, C)``.
        dtype: of the stored codes.

    Attributes:
        codes: ``(size, bits)`` of ``dtype``.
        labels: int64 ``(size,)``, or bool ``(size, num_classes)``.
        seen: bool ``(size,)``, True for rows that were written; others are left out of every pair.
        position: int64, 0-dim: the row that is written next.

    Raises:
        ValueError: a size below 1.
        TypeError: ``dtype`` is not a floating-point type.

    Source: K. He et al., Momentum Contrast, CVPR 2020, for the queue; X. Wang et al., Cross-Batch Memory,
    CVPR 2020, for labels in it.

    Example:
        >>> from hybridhash.losses import WMLLoss
        >>> loss = WMLLoss(bank=CodeQueue(size=3, bits=2))
        >>> for label in range(2):
        ...     codes = torch.full((2, 2), label - 0.5, requires_grad=True)
        ...     value = loss(codes, torch.tensor([label, label]))
        >>> loss.bank.labels, int(loss.bank.position)
        (tensor([1, 0, 1]), 1)
    """

    needs_indices = False

    position: Tensor

    def __init__(
        self,
        size: int,
        bits: int,
        num_classes: int | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_integer("size", size, 1)
        super().__init__(size, bits, num_classes, count_unseen=False, dtype=dtype)
        self.register_buffer("position", torch.zeros((), dtype=torch.int64, device="cpu"))

    def enqueue(self, codes: Tensor, labels: Tensor) -> None:
        """Write a batch over the oldest codes; nothing is differentiated.

        Args:
            codes: ``(B, bits)``, any floating-point type.
            labels: ``(B,)`` class ids, or ``(B, num_classes)`` multi-hot if the queue was made for them.

        Raises:
            TypeError: codes that are not floating-point.
            ValueError: shapes that do not fit the queue or each other, more codes than it has rows, codes
                that are not finite in its dtype, tensors on another device.
        """
        labels = as_labels(labels, length=check_codes(codes).shape[0])
        _, labels = self.check(None, codes, labels)
        self.write(None, codes, labels, kind=self.kind)

    @torch.no_grad()
    def write(
        self, rows: Tensor | None, codes: Tensor, labels: Tensor, *, kind: str | None = "codes"
    ) -> Tensor:
        """Write a batch over the oldest codes; see :meth:`CodeMemory.write`.

        Raises:
            ValueError: as :meth:`enqueue`, or codes of another kind than the queue holds.
        """
        if self.kind not in (None, kind):
            raise self._other_kind(kind)
        owners = torch.full((codes.shape[0],), rank(), device=codes.device)
        owners, codes, labels = gather_rows(owners), gather_rows(codes.detach()), gather_rows(labels)
        if len(codes) > self.num_samples:
            raise ValueError(
                f"a batch of {len(codes)} codes does not fit a queue of {self.num_samples}: make it larger"
            )
        self.kind = kind
        codes = codes.to(self.codes.dtype)
        position = self.position.to(codes.device)
        steps = torch.arange(len(codes), device=codes.device)
        newest = (position - len(codes) + steps) % self.num_samples
        if (
            bool(self.seen[newest].all())
            and torch.equal(self.codes[newest], codes)
            and torch.equal(self.labels[newest], labels)
        ):
            return newest[owners == rank()]  # another loss that shares the queue has written the batch
        rows = (position + steps) % self.num_samples
        self.codes[rows] = codes
        self.labels[rows] = labels
        self.seen[rows] = True
        self.position.copy_((position + len(codes)) % self.num_samples)
        return rows[owners == rank()]

    def extra_repr(self) -> str:
        return f"size={self.num_samples}, bits={self.bits}, num_classes={self.num_classes}"


def required_with(bank: CodeMemory | None) -> frozenset[str]:
    """Return what a training loop must provide because a loss has this memory.

    Raises:
        TypeError: ``bank`` is no memory of codes.
    """
    if bank is None:
        return frozenset()
    if not isinstance(bank, CodeMemory):
        raise TypeError(
            f"bank must be a CodeBank, a CodeQueue or None, got {bank!r}: create_loss_for(..., bank=True) "
            "makes one of the right size"
        )
    return frozenset({"bank", "indices"} if bank.needs_indices else {"bank"})
