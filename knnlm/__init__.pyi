"""What type checkers and editors see of the package, whose names are imported when first used."""

from knnlm.book.recipes import RECIPES as RECIPES
from knnlm.book.recipes import Recipe as Recipe
from knnlm.book.recipes import load_recipe as load_recipe
from knnlm.cases import Case as Case
from knnlm.cases import NeighborList as NeighborList
from knnlm.cases import find_cases as find_cases
from knnlm.corpora import Corpus as Corpus
from knnlm.corpora import load_corpus as load_corpus
from knnlm.datastore import Datastore as Datastore
from knnlm.errors import InputError as InputError
from knnlm.evaluation import Sweep as Sweep
from knnlm.evaluation import best_mixture as best_mixture
from knnlm.evaluation import bootstrap as bootstrap
from knnlm.evaluation import perplexity as perplexity
from knnlm.factory import Metric as Metric
from knnlm.generation import KNNLogitsProcessor as KNNLogitsProcessor
from knnlm.generation import generate as generate
from knnlm.index import Index as Index
from knnlm.index import Neighbors as Neighbors
from knnlm.inputs import load_text as load_text
from knnlm.key_layers import KeyLayer as KeyLayer
from knnlm.language_model import LanguageModel as LanguageModel
from knnlm.mixture import Setting as Setting
from knnlm.mixture import interpolate as interpolate
from knnlm.mixture import knn_distribution as knn_distribution
from knnlm.mixture import knn_log_prob as knn_log_prob
from knnlm.mixture import knn_log_prob_grid as knn_log_prob_grid
from knnlm.mixture import neighbor_shares as neighbor_shares
from knnlm.planner import plan as plan
from knnlm.retrieval import Retrieval as Retrieval
from knnlm.text import Document as Document
from knnlm.text import Split as Split
from knnlm.tokens import TokenStream as TokenStream
from knnlm.tokens import sliding_windows as sliding_windows
from knnlm.tokens import train_tokenizer as train_tokenizer
from knnlm.training import train_language_model as train_language_model

FILES: dict[str, list[str]]
__version__: str
