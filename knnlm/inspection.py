"""What a folder is, and whether it is whole: a model, a datastore, an index, a retrieval."""

from pathlib import Path

from knnlm.arrays import check_files, open_array
from knnlm.artifacts import is_complete, read_complete, read_record
from knnlm.datastore import Datastore
from knnlm.errors import InputError
from knnlm.evaluation import perplexity
from knnlm.index import Index
from knnlm.language_model import LanguageModel


def describe(path: str | Path, deep: bool = True) -> dict:
    """Return what is known of a folder, for people and programs.

    Always there are ``path``, ``kind`` (``"model"``, ``"datastore"``, ``"index"``,
    ``"retrieval"``, ``"unfinished"`` or None), ``complete``, and ``problem``: what is wrong and
    what to do, or None. The rest is what the folder's record says, without what is as long as the
    text, and sizes in bytes.

    Parameters
    ----------
    deep
        Read every byte, not only what was written about it.
    """
    path = Path(path)
    found: dict = {"path": str(path), "kind": None}
    kind = next((kind for kind, (file, _) in KINDS.items() if (path / file).exists()), None)
    if kind is None:
        state = "holds nothing that knnlm knows" if path.exists() else "does not exist"
        problem = f"it {state}. Give what knnlm train, build or index wrote."
        return {**found, "complete": False, "problem": problem}
    found["kind"] = "model" if kind == "training" else kind
    files = {file.name: file.stat().st_size for file in path.iterdir() if file.is_file()}
    found |= {"bytes": sum(files.values()), "file_bytes": files}
    try:
        if kind != "model" and not is_complete(path, kind):
            found |= (
                {"kind": "unfinished"} if kind == "training" else _told(read_record(path, kind))
            )
            read_complete(path, kind)  # says why not
        read = KINDS[kind][1]
        read(path, found, deep)
    except (InputError, OSError) as error:
        return {**found, "complete": False, "problem": str(error)}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"its record cannot be read ({error!r}). Make it again."
        return {**found, "complete": False, "problem": problem}
    return {**found, "complete": True, "problem": None}


def training_summary(folder: Path) -> dict:
    """Return what a person asks of ``training.json``: its numbers, and the last of its curve."""
    record = read_complete(folder, "training")
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
    left_out = ("format", "complete", "first_token", "crc32", "bytes")
    told = {n: v for n, v in record.items() if n not in left_out and not isinstance(v, list)}
    return (
        told | {"documents": len(record["document_names"])} if "document_names" in record else told
    )


def _datastore(path: Path, found: dict, deep: bool) -> None:
    store = Datastore.open(path)
    index = path / "index"
    found |= {**_told(store.record), "fingerprint": store.fingerprint}
    found["index"] = str(index) if (index / "index.json").exists() else None
    if deep:
        check_files(path, store.record)


def _index(path: Path, found: dict, deep: bool) -> None:
    record = read_complete(path, "index")
    found |= _told(record)
    if deep:
        check_files(path, record)
        Index.open(path)


def _retrieval(path: Path, found: dict, deep: bool) -> None:
    record = read_complete(path, "retrieval")
    found |= _told(record)
    found["perplexity_lm"] = perplexity(open_array(path / "lm_log_prob.npy", (record["tokens"],)))
    if deep:
        check_files(path, record)


def _model(path: Path, found: dict, deep: bool) -> None:
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


def _trained(path: Path, found: dict, deep: bool) -> None:
    if deep:
        check_files(path, read_complete(path, "training"))
    _model(path, found, deep)
    found["training"] = training_summary(path)
    if found["training"]["model"] != found["model"]:
        raise InputError(
            f"The weights in {path} are not those that were trained here. Train it again."
        )


KINDS = {  # by which file a folder is known, and what reads it
    "datastore": ("datastore.json", _datastore),
    "index": ("index.json", _index),
    "retrieval": ("retrieval.json", _retrieval),
    "training": ("training.json", _trained),
    "model": ("config.json", _model),
}
