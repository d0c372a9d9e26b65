"""k-nearest-neighbor language models (Khandelwal et al. 2020), step by step.

Text → tokens → windows → (key, value, log p) → datastore → index → neighbors → p_kNN → mixture →
perplexity, cases, generated text. Each arrow is one file, in this order: corpora, tokens,
language_model, training, datastore, index, mixture, evaluation, cases, generation, planner,
recipes, plotting.
"""

from knnlm.cases import Case, NeighborList, find_cases
from knnlm.corpora import Corpus, Document, Split, load_corpus, load_text
from knnlm.datastore import Datastore
from knnlm.errors import InputError
from knnlm.evaluation import Retrieval, Setting, Sweep, perplexity
from knnlm.generation import KNNLogitsProcessor, generate
from knnlm.index import Index, Metric, Neighbors
from knnlm.language_model import KeyLayer, LanguageModel
from knnlm.mixture import interpolate, knn_distribution, knn_log_prob, neighbor_shares
from knnlm.planner import plan
from knnlm.recipes import RECIPES, Recipe
from knnlm.tokens import TokenStream, sliding_windows, train_tokenizer
from knnlm.training import train_language_model

__version__ = "0.1.0"
__all__ = [
    "RECIPES",
    "Case",
    "Corpus",
    "Datastore",
    "Document",
    "Index",
    "InputError",
    "KNNLogitsProcessor",
    "KeyLayer",
    "LanguageModel",
    "Metric",
    "NeighborList",
    "Neighbors",
    "Recipe",
    "Retrieval",
    "Setting",
    "Split",
    "Sweep",
    "TokenStream",
    "find_cases",
    "generate",
    "interpolate",
    "knn_distribution",
    "knn_log_prob",
    "load_corpus",
    "load_text",
    "neighbor_shares",
    "perplexity",
    "plan",
    "sliding_windows",
    "train_language_model",
    "train_tokenizer",
]
