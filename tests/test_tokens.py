"""Text to tokens and back, one stream of documents, and windows that give each position once."""

import numpy as np
import oracle
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from knnlm.errors import InputError
from knnlm.text import Document, Split
from knnlm.tokens import (
    END_OF_TEXT,
    TokenStream,
    Window,
    document_of,
    sliding_windows,
    tokenizer_fingerprint,
    train_tokenizer,
)


@given(st.text())
def test_any_text_comes_back_from_its_tokens(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


@pytest.fixture(scope="module")
def syllables():
    """A tokenizer over characters, from Korean sentences in which few syllables are frequent."""
    words = "한국 서울 사람이 사람을 도시에서 도시의 큰 작은 강과 산 note 7 km.".split()
    text = Split.of([" ".join(words[i:] + words[:i]) + "\n" for i in range(len(words))] * 3)
    return train_tokenizer(text, 400, "characters")


@given(st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"])))
@example("뷁 has <0xEB> and 🙂, 漢字\n\n  두 칸")
def test_any_text_comes_back_from_tokens_of_characters(syllables, text):
    ids = syllables(text, add_special_tokens=False)["input_ids"]
    assert syllables.decode(ids) == text


def test_a_token_of_characters_is_never_a_part_of_one(syllables):
    spelled = {f"<0x{byte:02X}>" for byte in range(256)}
    for token, i in syllables.get_vocab().items():
        if token not in spelled:
            assert syllables.decode([i]) == token.replace("▁", " ")
    pieces = syllables.tokenize("큰 도시에서 사람을")
    assert not spelled & set(pieces)
    assert len(pieces) < 7
    assert spelled >= set(syllables.tokenize("뷁"))  # hardly ever seen: its three bytes
    assert len(syllables) <= 400


def test_characters_that_are_equally_frequent_are_chosen_by_no_chance():
    """More of them than the alphabet takes: training again gives the same tokenizer."""
    syllables = [chr(ord("가") + i) for i in range(300)]
    text = Split.of(["".join(syllables[i:] + syllables[:i]) for i in range(0, 300, 50)])
    made = [train_tokenizer(text, 657, "characters") for _ in range(3)]
    assert len({tokenizer_fingerprint(tokenizer) for tokenizer in made}) == 1
    kept = set(made[0].get_vocab()) & set(syllables)
    assert kept == set(syllables[:100])


def test_an_alphabet_that_does_not_exist_is_refused(text):
    with pytest.raises(InputError, match=r"'jamo'\. Use bytes or characters"):
        train_tokenizer(text, 400, "jamo")


def test_the_tokenizer_holds_the_bytes_the_end_of_text_and_as_many_tokens_as_asked(text, tokenizer):
    assert len(tokenizer) == 320
    assert tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id) == END_OF_TEXT
    sentence = next(iter(text)).text
    assert len(tokenizer(sentence)["input_ids"]) < 0.8 * len(sentence.encode())
    with pytest.raises(InputError, match=r"256 .* 257"):
        train_tokenizer(text, 256)
    assert len(train_tokenizer(Split.of([""]), 257)) == 257


def test_tokenizers_that_encode_alike_share_a_fingerprint(text, tokenizer, model_folder):
    from transformers import AutoTokenizer

    own = tokenizer_fingerprint(tokenizer)
    assert len(own) == 16
    assert own == tokenizer_fingerprint(train_tokenizer(text, 320))
    assert own == tokenizer_fingerprint(AutoTokenizer.from_pretrained(model_folder))
    assert own != tokenizer_fingerprint(train_tokenizer(text, 321))


DOCUMENTS = st.lists(st.text(max_size=40), min_size=1, max_size=5)


@given(DOCUMENTS)
def test_a_stream_is_each_document_followed_by_the_end_of_text(tokenizer, texts):
    end = tokenizer.eos_token_id
    expected, starts = [], []
    for text in texts:
        starts.append(len(expected))
        expected += [*tokenizer(text, add_special_tokens=False)["input_ids"], end]
    if len(expected) < 2:
        with pytest.raises(InputError, match="at least two tokens"):
            TokenStream.encode(Split.of(texts), tokenizer)
        return
    stream = TokenStream.encode(Split.of(texts), tokenizer)
    assert stream.tokens.tolist() == expected
    assert stream.tokens.dtype == np.int32
    assert len(stream) == len(expected)
    assert stream.document_starts.tolist() == starts
    assert stream.words == sum(len(text.split()) for text in texts)
    assert stream.characters == sum(map(len, texts))
    borders = [*starts, len(expected)]
    for i, text in enumerate(texts):
        assert tokenizer.decode(stream.tokens[borders[i] : borders[i + 1] - 1]) == text


def test_a_stream_is_what_the_oracle_encodes(model_folder, tokenizer, text):
    stream = TokenStream.encode(text, tokenizer)
    assert stream.tokens.tolist() == oracle.encode(model_folder, [d.text for d in text])
    assert stream.document_names == tuple(d.name for d in text)


def test_no_special_token_is_added_even_by_a_tokenizer_that_would(tokenizer):
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    end = tokenizer.eos_token_id
    backend.post_processor = TemplateProcessing(
        single=f"{END_OF_TEXT} $A {END_OF_TEXT}", special_tokens=[(END_OF_TEXT, end)]
    )
    eager = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END_OF_TEXT)
    assert eager("rice")["input_ids"][0] == end
    stream = TokenStream.encode(Split.of(["rice", "wheat"]), eager)
    assert np.array_equal(
        stream.tokens, TokenStream.encode(Split.of(["rice", "wheat"]), tokenizer).tokens
    )


def test_without_an_end_of_text_token_nothing_separates(tokenizer):
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    assert bare.eos_token_id is None
    stream = TokenStream.encode(Split.of(["rice", "wheat"]), bare)
    assert tokenizer.decode(stream.tokens) == "ricewheat"
    assert tokenizer_fingerprint(bare) != tokenizer_fingerprint(tokenizer)


def test_a_spooled_stream_is_the_one_in_memory(tokenizer, tmp_path):
    documents = Split.of([f"Document {i} of many." for i in range(150)])  # more than one batch
    memory = TokenStream.encode(documents, tokenizer)
    spooled = TokenStream.encode(documents, tokenizer, tmp_path / "tokens")
    assert isinstance(spooled.tokens, np.memmap)
    assert np.array_equal(spooled.tokens, memory.tokens)
    assert np.array_equal(spooled.document_starts, memory.document_starts)
    assert spooled.fingerprint == memory.fingerprint
    assert spooled.document_names == memory.document_names
    assert len(memory.document_names) == 150


def test_ids_above_those_of_int16_are_kept(tokenizer):
    class Wide:
        """A tokenizer with a vocabulary of 100,000."""

        eos_token_id, eos_token, is_fast = 99_999, "end", False

        def get_vocab(self):
            return {}

        def __call__(self, texts, **options):
            return {"input_ids": [[40_000, 70_000] for _ in texts]}

    stream = TokenStream.encode(Split.of(["x"]), Wide())
    assert stream.tokens.tolist() == [40_000, 70_000, 99_999]


def test_fingerprints_tell_texts_and_their_borders_apart(tokenizer):
    def fingerprint(*texts):
        return TokenStream.encode(Split.of(texts), tokenizer).fingerprint

    assert fingerprint("rice wheat", "a") == fingerprint("rice wheat", "a")
    assert fingerprint("rice wheat", "a") != fingerprint("rice wheat", "b")
    # The same ids with another border: the end of text is written in the document.
    joined = TokenStream.encode(Split.of([f"rice{END_OF_TEXT}a"]), tokenizer)
    two = TokenStream.encode(Split.of(["rice", "a"]), tokenizer)
    assert np.array_equal(joined.tokens, two.tokens)
    assert joined.fingerprint != two.fingerprint


def test_an_empty_text_is_refused_in_memory_and_spooled(tokenizer, tmp_path):
    for spool in (None, tmp_path / "tokens"):
        with pytest.raises(InputError, match="nothing has 0 tokens"):
            TokenStream.encode(Split.of([], "nothing"), tokenizer, spool)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_each_position_belongs_to_the_document_it_lies_in(lengths):
    starts = np.cumsum([0, *lengths[:-1]])
    expected = [i for i, length in enumerate(lengths) for _ in range(length)]
    assert document_of(starts, np.arange(sum(lengths))).tolist() == expected


def test_documents_are_named(tokenizer):
    text = Split.of([Document("Korea", "rice"), Document("Peru", "copper")])
    stream = TokenStream.encode(text, tokenizer)
    where = stream.document_of(np.array([0, len(stream) - 1]))
    assert [stream.document_names[i] for i in where] == ["Korea", "Peru"]


@st.composite
def shapes(draw):
    """Tokens, window, stride."""
    window = draw(st.integers(1, 40))
    return draw(st.integers(0, 200)), window, draw(st.integers(1, window))


@given(shapes())
def test_windows_are_those_of_an_obvious_loop(shape):
    n, window, stride = shape
    found = [(w.start, w.stop, list(range(w.first, w.stop))) for w in sliding_windows(*shape)]
    assert found == (oracle.windows(n, window, stride) if n > 1 else [])


@given(shapes())
def test_each_position_is_given_once_in_order_with_enough_context(shape):
    n, window, stride = shape
    windows = sliding_windows(n, window, stride)
    given_by = [(i, w) for w in windows for i in range(w.first, w.stop)]
    assert [i for i, _ in given_by] == list(range(n - 1))
    for i, w in given_by:
        assert w.start <= i < w.stop
        if i >= window:
            assert i - w.start >= window - stride
    for w in windows:
        assert 0 <= w.start <= w.first < w.stop <= n - 1
        assert w.stop - w.start == min(window, n - 1)
    if windows:
        assert windows[-1].stop - 1 == n - 2


def test_the_study_moves_by_half_a_window():
    windows = sliding_windows(4097, 1024)
    assert windows[:3] == [Window(0, 1024, 0), Window(512, 1536, 1024), Window(1024, 2048, 1536)]
    assert windows[-1] == Window(3072, 4096, 3584)
    assert len(windows) == 7
    assert sliding_windows(5, 1) == [Window(i, i + 1, i) for i in range(4)]


@pytest.mark.parametrize(("window", "stride"), [(8, 0), (8, 9), (8, -1), (0, 1)])
def test_a_stride_that_would_leave_tokens_out_is_refused(window, stride):
    with pytest.raises(InputError, match=f"stride of {stride} .* window of {window}"):
        sliding_windows(100, window, stride)
