"""k-nearest-neighbor language models (Khandelwal et al. 2020), step by step.

Text → tokens → windows → (key, value, log p) → datastore → index → neighbors → p_kNN → mixture →
perplexity, cases, generated text. Each arrow is one file; :data:`FILES` has them in this order.
"""

import gc
import importlib
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

FILES = {
    "errors": ["InputError"],
    "progress": [],
    "artifacts": [],
    "arrays": [],
    "text": ["Document", "Split"],
    "corpora": ["Corpus", "load_corpus"],
    "inputs": ["load_text"],
    "tokens": ["TokenStream", "sliding_windows", "train_tokenizer"],
    "device": [],
    "key_layers": ["KeyLayer"],
    "language_model": ["LanguageModel"],
    "loss": [],
    "muon": [],
    "trainer": [],
    "training": ["train_language_model"],
    "datastore": ["Datastore"],
    "factory": ["Metric"],
    "index_builder": [],
    "index": ["Index", "Neighbors"],
    "mixture": [
        "Setting",
        "interpolate",
        "knn_distribution",
        "knn_log_prob",
        "knn_log_prob_grid",
        "neighbor_shares",
    ],
    "evaluation": ["Sweep", "best_mixture", "bootstrap", "perplexity"],
    "lookup": [],
    "retrieval": ["Retrieval"],
    "methods": [],
    "methods.adaptive": [],
    "methods.merging": [],
    "methods.pointers": [],
    "methods.cache": [],
    "cases": ["Case", "NeighborList", "find_cases"],
    "generation": ["KNNLogitsProcessor", "generate"],
    "planner": ["plan"],
    "inspection": [],
    "book": [],
    "book.recipes": ["RECIPES", "Recipe", "load_recipe"],
}
_FILE_OF = {name: file for file, names in FILES.items() for name in names}
__all__ = sorted(_FILE_OF)


def __getattr__(name: str) -> Any:
    """Import a file when one of its names is first used: ``import knnlm`` itself is instant."""
    if name in FILES:
        return _import(name)
    if name in _FILE_OF:
        return getattr(_import(_FILE_OF[name]), name)
    raise AttributeError(f"module 'knnlm' has no attribute {name!r}")


def _import(file: str) -> ModuleType:
    """Import a file, and do not look for garbage meanwhile: a fifth of the time, and none there."""
    collects = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(f"knnlm.{file}")
    finally:
        if collects:
            gc.enable()


def __dir__() -> list[str]:
    return [*__all__, *(file for file in FILES if "." not in file), "__version__"]
