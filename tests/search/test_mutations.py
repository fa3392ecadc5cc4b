"""Damaged files of saved indexes: a load gives the same index, or an error that names the file.

HYBRIDHASH_MUTATIONS sets how many random mutations each kind of index gets.
"""

import os
import random

import pytest
import torch

from hybridhash.search import FaissIndex
from tests.search._codes import random_codes as codes

pytest.importorskip("faiss")

MUTATIONS = int(os.environ.get("HYBRIDHASH_MUTATIONS", "40"))
QUERY = codes(20)


def _content(index):
    """Return all that a user sees of an index."""
    distances, ids = index.search(QUERY, 30)
    known = index.names(ids) if index._names else None
    settings = (len(index), index.bits, index.kind, index.model_id, index.options, index._next_id)
    return distances.tolist(), ids.tolist(), known, settings


def _mutated(content, generator):
    """Change, cut, repeat or blank a part of some bytes."""
    changed = bytearray(content)
    start = generator.randrange(len(content))
    stop = min(len(content), start + generator.choice([1, 1, 8, 64, 1024]))
    match generator.randrange(6):
        case 0:
            changed[start] ^= 1 << generator.randrange(8)
        case 1:
            changed[start:stop] = generator.randbytes(stop - start)
        case 2:
            del changed[start:]
        case 3:
            del changed[start:stop]
        case 4:
            changed[start:stop] = bytes(stop - start)
        case 5:
            changed[start:start] = changed[start:stop]
    return bytes(changed)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw", "multihash"])
def test_a_damaged_file_never_gives_another_result(kind, named, tmp_path):
    generator = random.Random(f"{kind} {named}")
    index = FaissIndex(24, kind, model_id="resnet 1f2e")
    index.add(codes(400, seed=1), ids=[f"{row}.jpg" for row in range(400)] if named else None)
    index.remove([f"{row}.jpg" for row in range(9)] if named else range(9))
    index.save(tmp_path)
    expected = _content(FaissIndex.load(tmp_path))
    assert expected == _content(index)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2 + (kind == "hnsw") + named
    refused = []
    for _ in range(MUTATIONS):
        file = generator.choice(files)
        whole = file.read_bytes()
        file.write_bytes(_mutated(whole, generator))
        try:
            loaded = FaissIndex.load(tmp_path)
        except (ValueError, FileNotFoundError) as error:
            refused.append((file.name, str(error)))
        else:
            assert _content(loaded) == expected
        finally:
            file.write_bytes(whole)
    assert len(refused) >= 0.7 * MUTATIONS
    for name, message in refused:
        assert str(tmp_path / name) in message or str(tmp_path / "manifest.json") in message
    assert torch.equal(FaissIndex.load(tmp_path).search(QUERY, 5)[1], index.search(QUERY, 5)[1])
