"""The held-out split, and the rows on which bits per byte are measured."""

import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np

from data.batch import Batch, Segment, document_ids, stack_rows
from data.config import DataConfig
from data.documents import Documents
from data.packing import Packer
from data.tokenizer import Tokenizer

_READ_TOGETHER = 256


def is_held_out(text: str, fraction: float) -> bool:
  """Whether a document is in the held-out part: a pure function of its content.

  Its hash is another one than the content hash by which duplicates are chosen: documents that stay
  because theirs is small would otherwise be held out more often.
  """
  digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, person=b"held-out").digest()
  return int.from_bytes(digest, "little") < fraction * 2**64


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
  """Documents as rows, for bits per byte = NLL in bits of all targets / num_bytes.

  Attributes:
    batch: rows [R, seq_len]; R is a multiple of the batch size, the last rows may be padding.
    num_tokens: targets with loss weight 1: every token and end of document, each once.
    num_bytes: the UTF-8 bytes of the documents.
  """

  batch: Batch
  num_tokens: int
  num_bytes: int


def windows(ids: np.ndarray, seq_len: int, stride: int) -> Iterator[Segment]:
  """Overlapping windows over a document, each target scored once.

  Consecutive windows start `stride` apart, so that each scored target after the first window has
  at least seq_len - stride tokens before it; those are read again and carry no loss.
  """
  start = scored = 0
  total = len(ids) - 1
  while scored < total:
    stop = min(start + seq_len, total)
    yield Segment(ids[start : stop + 1], context=scored - start)
    scored = stop
    start += stride


def evaluation_set(
  documents: Documents, tokenizer: Tokenizer, config: DataConfig, *, stride: int, batch_size: int
) -> EvaluationSet:
  """The rows that score every token of `documents` once, the end of each document included.

  Args:
    stride: of the windows over documents longer than a row, in [1, config.seq_len].
    batch_size: of evaluation; the number of rows is padded to a multiple of it.

  Raises:
    ValueError: no documents, or a stride out of its range.
  """
  if not 1 <= stride <= config.seq_len:
    raise ValueError(f"eval.stride={stride} must be in [1, data.seq_len={config.seq_len}].")
  if not len(documents):
    raise ValueError(
      "there are no documents to evaluate on; raise data.heldout_fraction or name other eval.files."
    )
  packer = Packer(config.seq_len, config.max_segments, config.open_bins)
  rows, num_bytes, num_tokens = [], 0, 0
  for first in range(0, len(documents), _READ_TOGETHER):
    texts = documents.read(range(first, min(first + _READ_TOGETHER, len(documents))))
    for text, tokens in zip(texts, tokenizer.encode_batch(texts), strict=True):
      num_bytes += len(text.encode("utf-8"))
      num_tokens += len(tokens) + 1
      for segment in windows(document_ids(tokens, tokenizer.eot), config.seq_len, stride):
        if row := packer.add(segment):
          rows.append(row)
  rows += packer.flush()
  rows += [[]] * (-len(rows) % batch_size)
  return EvaluationSet(stack_rows(rows, config.seq_len), num_tokens, num_bytes)
