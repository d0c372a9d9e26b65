"""Cases: the study's fields, and numbers that agree with the table and with the oracle."""

import json

import numpy as np
import oracle
import pytest

from knnlm.cases import find_cases
from knnlm.errors import InputError

CHOICE = {"k": 16, "lam": 0.4, "temperature": 20.0}
FIELDS = {
    "context",
    "label",
    "lm",
    "knn",
    "lm+knn",
    "lm_probability",
    "knn_probability",
    "knn_lm_percent",
    "neighbors",
}


@pytest.fixture(scope="module")
def cases(lm, retrieval):
    return find_cases(lm, retrieval, **CHOICE, top=12, sort="position")


def test_a_record_has_exactly_the_fields_of_the_study_and_is_json(cases):
    for case in cases:
        record = json.loads(json.dumps(case.to_dict(), allow_nan=False))
        assert set(record) == FIELDS
        assert set(record["neighbors"]) == {"labels", "values", "distance", "softmax", "contexts"}
        assert {len(v) for v in record["neighbors"].values()} == {CHOICE["k"]}


def test_probabilities_agree_with_the_table(cases, retrieval):
    mixed = np.exp(retrieval.log_prob(**CHOICE))
    for case in cases:
        lm = np.exp(retrieval.lm_log_prob[case.position])
        assert case.lm_probability == pytest.approx(lm, rel=1e-4)
        assert case.knn_lm_probability == pytest.approx(mixed[case.position], rel=1e-4)


def test_p_knn_and_the_shares_agree_with_a_loop_over_the_neighbors(cases, lm, retrieval):
    for case in cases:
        pairs = list(zip(case.neighbors.distance, range(CHOICE["k"]), strict=True))
        p = oracle.knn_probabilities(
            pairs, [None, *case.neighbors.values], CHOICE["temperature"], lm.vocab_size
        )
        target = int(retrieval.targets[case.position])
        assert case.knn_probability == pytest.approx(p[target], rel=1e-5)
        assert sum(case.neighbors.softmax) == pytest.approx(1, rel=1e-5)
        likeliest, probability = case.knn[0]
        assert probability == pytest.approx(max(p), rel=1e-5)
        assert likeliest == lm.tokenizer.decode([int(np.argmax(p))])


def test_helped_and_hurt_are_the_two_ends_of_the_gain(lm, retrieval):
    gain = retrieval.log_prob(**CHOICE) - retrieval.lm_log_prob
    for sort, expected in (("helped", gain.max()), ("hurt", gain.min())):
        first = find_cases(lm, retrieval, **CHOICE, top=3, sort=sort)[0]
        assert gain[first.position] == pytest.approx(expected, abs=1e-8)


def test_many_cases_are_found_a_few_at_a_time(lm, retrieval, cases, monkeypatch):
    monkeypatch.setattr("knnlm.cases.AT_ONCE", 5)
    again = find_cases(lm, retrieval, **CHOICE, top=12, sort="position")
    assert [case.position for case in again] == [case.position for case in cases]
    assert [case.neighbors for case in again] == [case.neighbors for case in cases]
    for one, other in zip(again, cases, strict=True):
        assert one.knn_lm_probability == pytest.approx(other.knn_lm_probability, rel=1e-4)


def test_of_those_hurt_alike_the_surest_come_first(lm, retrieval):
    """With one neighbor nearly every token loses log(1 - λ)."""
    hurt = find_cases(lm, retrieval, k=1, lam=0.4, top=50, sort="hurt")
    assert all(case.knn_probability == 0 for case in hurt)
    sureness = [case.lm_probability for case in hurt]
    assert sureness == pytest.approx(sorted(sureness, reverse=True), rel=1e-5)


def test_context_ends_where_the_label_begins(cases, lm, held_out):
    texts = {document.name: document.text for document in held_out}
    for case in cases[1:]:
        if case.label != lm.tokenizer.eos_token:
            assert (case.context + case.label)[-20:] in texts[case.document]


def test_neighbor_contexts_come_from_the_document_that_is_named(cases, text):
    texts = {document.name: document.text + "<|endoftext|>" for document in text}
    for neighbors in (case.neighbors for case in cases):
        for context, document in zip(neighbors.contexts, neighbors.documents, strict=True):
            assert context.strip("�") in texts[document]


def test_an_unknown_order_is_refused(lm, retrieval):
    with pytest.raises(InputError, match="helped, hurt, position"):
        find_cases(lm, retrieval, sort="best")
