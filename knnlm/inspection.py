"""What a folder is, and whether it is whole: a model, a datastore, an index, a retrieval."""

import json
from pathlib import Path

import numpy as np

from knnlm.datastore import Datastore
from knnlm.errors import InputError
from knnlm.evaluation import perplexity
from knnlm.files import file_crc32, read_record
from knnlm.index import Index
from knnlm.language_model import LanguageModel


def describe(path: str | Path, checksums: bool = True) -> dict:
    """Return what is known of a folder, for people and programs.

    Always there are ``path``, ``kind`` (``"model"``, ``"datastore"``, ``"index"``,
    ``"retrieval"``, ``"unfinished"`` or None), ``complete``, and ``problem``: what is wrong and
    what to do, or None. The rest is what the folder's record says, without what is as long as the
    text, and sizes in bytes.

    Parameters
    ----------
    checksums
        Read every byte, not only what was written about it.
    """
    path = Path(path)
    found: dict = {"path": str(path), "kind": None}
    known = [told_by for file, told_by in KINDS.items() if (path / file).exists()]
    if not known:
        state = "holds nothing that knnlm knows" if path.exists() else "does not exist"
        problem = f"it {state}. Give what knnlm train, build or index wrote."
        return {**found, "complete": False, "problem": problem}
    found["kind"], read = known[0]
    files = {file.name: file.stat().st_size for file in path.iterdir() if file.is_file()}
    found |= {"bytes": sum(files.values()), "file_bytes": files}
    try:
        problem = read(path, found, checksums)
    except (InputError, OSError) as error:
        problem = str(error)
    except RuntimeError:
        problem = "FAISS cannot read index.faiss. Build it again."
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"its record cannot be read ({error!r}). Make it again."
    return {**found, "complete": problem is None, "problem": problem}


def training_summary(folder: Path) -> dict:
    """Return what a person asks of ``training.json``: its numbers, and the last of its curve."""
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    losses = [row["loss"] for row in record["curve"] if "loss" in row]
    return {
        **record["settings"],
        "model": record["model"],
        "parameters": record["parameters"],
        "tokens_read": record["tokens"],
        "seconds": record["seconds"],
        "loss": losses[-1] if losses else None,
        "validation_loss": record.get("validation_loss"),
        "bits_per_character": record.get("validation_bits_per_character"),
    }


def _told(record: dict) -> dict:
    """Return a record without its lists, an entry for each document, and what no person reads."""
    left_out = ("format", "first_token", "keys_crc32", "values_crc32", "crc32", "bytes")
    told = {n: v for n, v in record.items() if n not in left_out and not isinstance(v, list)}
    return (
        told | {"documents": len(record["document_names"])} if "document_names" in record else told
    )


def _datastore(path: Path, found: dict, checksums: bool) -> str | None:
    store = Datastore(path, read_record(path, "datastore"))
    index = path / "index"
    found |= {**_told(store.record), "fingerprint": store.fingerprint}
    found["index"] = str(index) if (index / "index.json").exists() else None
    return store.problem(checksums)


def _index(path: Path, found: dict, checksums: bool) -> str | None:
    record = read_record(path, "index")
    found |= _told(record)
    if checksums:
        Index.open(path)
        if file_crc32(path / "index.faiss") != record["crc32"]:
            return "the checksum of index.faiss is wrong. Delete the folder and build it again."
    return None


def _retrieval(path: Path, found: dict, checksums: bool) -> str | None:
    record = read_record(path, "retrieval")
    found |= _told(record)
    n, k = record["tokens"], record["k"]
    shapes = {"targets": (n,), "distances": (n, k), "ids": (n, k), "lm_log_prob": (n,)}
    for name, shape in shapes.items():
        array = np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        if array.shape != shape:
            return f"{name}.npy is {array.shape}, the record says {shape}. Make it again."
    found["perplexity_lm"] = perplexity(array)
    return None


def _model(path: Path, found: dict, checksums: bool) -> str | None:
    lm = LanguageModel.from_pretrained(path, device="cpu", precision="float32")
    found |= {
        "architecture": type(lm.model).__name__,
        "parameters": lm.model.num_parameters(),
        "layers": lm.model.config.num_hidden_layers,
        "dim": lm.model.config.hidden_size,
        "vocab_size": lm.vocab_size,
        "context": lm.context,
        "model": lm.fingerprint,
        "tokenizer": lm.tokenizer_fingerprint,
        "training": None,
    }
    if (path / "training.json").exists():
        found["training"] = training_summary(path)
        if found["training"]["model"] != lm.fingerprint:
            return "its weights are not those that were trained here. Train it again."
    return None


def _unfinished(path: Path, found: dict, checksums: bool) -> str:
    return "it was interrupted while it was made. Run the same command again."


KINDS = {
    "datastore.json": ("datastore", _datastore),
    "index.json": ("index", _index),
    "retrieval.json": ("retrieval", _retrieval),
    "config.json": ("model", _model),
    "checkpoints": ("unfinished", _unfinished),
    "tokens.part": ("unfinished", _unfinished),
    "targets.npy": ("unfinished", _unfinished),
}
