"""Documents to one stream of token ids, and the sliding windows in which a model reads it."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from knnlm.errors import InputError
from knnlm.progress import progress
from knnlm.text import Document, Split

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(
    text: Split, vocab_size: int = 4096, alphabet: str = "bytes"
) -> PreTrainedTokenizerFast:
    """Train a BPE tokenizer (Sennrich et al. 2016) on ``text``; it can encode every string.

    Parameters
    ----------
    text
        The training documents.
    vocab_size
        Number of tokens, the 256 bytes and the end of text among them.
    alphabet
        What tokens are put together from. ``"bytes"``, as GPT-2's (Radford et al. 2019): for text
        in Latin script. ``"characters"``, as KoGPT2's: a syllable is never torn into bytes, but for
        those that ``text`` hardly has, so every token can be read; and more tokens are words, since
        none are spent on putting three bytes together. As in SentencePiece, a ``▁`` in the text
        comes back as the space that it stands for.
    """
    if vocab_size < 257:
        raise InputError(
            f"A vocabulary of {vocab_size} is too small. It holds the 256 bytes and the end of "
            "text: ask for 257 or more."
        )
    if alphabet not in ALPHABETS:
        raise InputError(f"There is no alphabet {alphabet!r}. Use {' or '.join(ALPHABETS)}.")
    tokenizer = ALPHABETS[alphabet](text, vocab_size)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def _byte_level(text: Split, vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in text), trainer)
    return tokenizer


def _character_level(text: Split, vocab_size: int) -> Tokenizer:
    """Return a BPE over the frequent characters; others are spelled in tokens for their bytes."""
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="never"),
        ]
    )
    # The trainer would choose them, too, but among equally frequent ones by chance.
    counts = Counter(character for document in text for character in document.text)
    counts["▁"] += counts.pop(" ", 0)
    ordered = sorted(counts, key=lambda character: (-counts[character], character))
    alphabet = ordered[: max(1, (vocab_size - 257) // 4)]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = split
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner.train_from_iterator((document.text for document in text), trainer)
    learned = json.loads(learner.to_str())["model"]
    merges = [tuple(merge) for merge in learned["merges"]]
    # Anew, without the trainer's special tokens: a text may hold the seven characters "<0x41>".
    tokenizer = Tokenizer(models.BPE(learned["vocab"], merges, byte_fallback=True))
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Replace("▁", " "), decoders.Fuse()]
    )
    return tokenizer


ALPHABETS = {"bytes": _byte_level, "characters": _character_level}


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return 16 hex digits that two tokenizers share when they encode alike."""
    if getattr(tokenizer, "is_fast", False):
        state = tokenizer.backend_tokenizer.to_str()
    else:
        state = repr(sorted(tokenizer.get_vocab().items()))
    state += f"|{tokenizer.eos_token}"
    return hashlib.sha256(state.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class TokenStream:
    """All documents of a text as one row of token ids, each followed by the end-of-text token.

    Parameters
    ----------
    tokens
        ``(n,) int32``; in memory, or mapped from a file.
    document_starts
        ``(documents,) int64``: where each document's first token stands.
    document_names
        One name a document.
    words, characters
        What the documents hold before tokenization: whitespace-separated words, and characters.
        They turn nats per token into perplexity per word and bits per character, which compare
        across tokenizers.
    tokenizer
        Fingerprint of what made the ids.
    """

    tokens: np.ndarray
    document_starts: np.ndarray
    document_names: tuple[str, ...]
    words: int
    characters: int
    tokenizer: str

    @classmethod
    def encode(
        cls,
        text: Iterable[Document],
        tokenizer: PreTrainedTokenizerBase,
        spool: Path | None = None,
    ) -> "TokenStream":
        """Encode documents without special tokens, an end-of-text token after each.

        Parameters
        ----------
        text
            A :class:`~knnlm.text.Split` or any documents.
        tokenizer
            Any Hugging Face tokenizer; where it has no end-of-text token, nothing separates.
        spool
            A file that receives the ids as they come and from which they are then mapped, for
            texts too large for memory. Without it the ids stay in memory.

        Raises
        ------
        InputError
            When there is less than two tokens of text: nothing to predict.
        """
        starts, names, parts = [], [], []
        n = words = characters = 0
        end = tokenizer.eos_token_id
        file = open(spool, "wb") if spool else None
        bar = progress(description="tokenize", unit="tokens")
        try:
            for batch in _batches(text, 64):
                encoded = tokenizer(
                    [document.text for document in batch],
                    add_special_tokens=False,
                    return_attention_mask=False,
                    verbose=False,
                )["input_ids"]
                for document, ids in zip(batch, encoded, strict=True):
                    ids = np.asarray(ids if end is None else [*ids, end], dtype=np.int32)
                    starts.append(n)
                    names.append(document.name)
                    n += len(ids)
                    words += len(document.text.split())
                    characters += len(document.text)
                    file.write(ids.tobytes()) if file else parts.append(ids)
                    bar.update(len(ids))
        finally:
            bar.close()
            if file:
                file.close()
        if n < 2:
            raise InputError(
                f"{getattr(text, 'name', 'The text')} has {n} tokens, and predicting takes a "
                "token and the one before it. Give a text of at least two tokens."
            )
        tokens = np.memmap(spool, dtype=np.int32, mode="r") if spool else np.concatenate(parts)
        return cls(
            tokens,
            np.asarray(starts, dtype=np.int64),
            tuple(names),
            words,
            characters,
            tokenizer_fingerprint(tokenizer),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over the ids and the document borders."""
        digest = hashlib.sha256()
        for lo in range(0, len(self.tokens), 1 << 24):
            digest.update(self.tokens[lo : lo + (1 << 24)].tobytes())
        digest.update(self.document_starts.tobytes())
        return digest.hexdigest()[:16]

    def document_of(self, positions: np.ndarray) -> np.ndarray:
        """Return the number of the document in which each token position lies, same shape."""
        return document_of(self.document_starts, positions)

    def about(self) -> dict[str, object]:
        """Return what a record keeps of the stream: all but its tokens, and the first of these."""
        return {
            "words": self.words,
            "characters": self.characters,
            "first_token": int(self.tokens[0]),
            "document_starts": self.document_starts.tolist(),
            "document_names": list(self.document_names),
        }

    @classmethod
    def of_record(cls, record: Mapping, following: np.ndarray, tokenizer: str) -> "TokenStream":
        """Return the stream of a record that has :meth:`about`, given all tokens but the first."""
        return cls(
            np.concatenate([[record["first_token"]], following]).astype(np.int32),
            np.asarray(record["document_starts"]),
            tuple(record["document_names"]),
            record["words"],
            record["characters"],
            tokenizer,
        )


def document_of(document_starts: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return which document holds each position, given the sorted starts of the documents.

    >>> document_of(np.array([0, 5]), np.array([0, 4, 5, 9])).tolist()
    [0, 0, 1, 1]
    """
    return np.searchsorted(document_starts, positions, side="right") - 1


def _batches(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    batch = []
    for document in documents:
        batch.append(document)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


class Window(NamedTuple):
    """One slice that the model reads: tokens ``[start, stop)``, giving positions from ``first``."""

    start: int
    stop: int
    first: int


def sliding_windows(n: int, window: int, stride: int | None = None) -> list[Window]:
    """Return the windows in which a stream of ``n`` tokens is read (the Korean study's scheme).

    The stream has ``n - 1`` positions with a next token. The first window gives all of its
    positions, each later one its last ``stride``; the last is moved back to end at position
    ``n - 2`` and gives only what was not given yet. So each position is given once, in order, and
    all but the first ``window`` see at least ``window - stride`` tokens before them.

    Parameters
    ----------
    n
        Tokens in the stream.
    window
        Tokens read at once, at most the model's context.
    stride
        New positions a window; half of ``window`` by default.

    >>> sliding_windows(11, window=4, stride=2)[:2]
    [Window(start=0, stop=4, first=0), Window(start=2, stop=6, first=4)]
    >>> sliding_windows(10, window=4, stride=2)[-1]
    Window(start=5, stop=9, first=8)
    """
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= stride <= window:
        raise InputError(
            f"A stride of {stride} does not fit a window of {window}. "
            f"Choose a stride from 1 to {window}, so that no token is left out."
        )
    positions = max(n - 1, 0)
    if positions <= window:
        return [Window(0, positions, 0)] if positions else []
    later = math.ceil((positions - window) / stride)
    windows = [Window(0, window, 0)]
    for j in range(1, later + 1):
        first = window + (j - 1) * stride
        stop = min(first + stride, positions)
        windows.append(Window(stop - window, stop, first))
    return windows
