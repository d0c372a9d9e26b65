"""Cases as tables and records: what they show is what the case holds."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knnlm.book import tables
from knnlm.cases import find_cases


@pytest.fixture(scope="module")
def cases(lm, retrieval):
    return find_cases(lm, retrieval, k=16, lam=0.4, temperature=20.0, top=3)


def test_the_overview_has_a_row_a_case(cases):
    table = tables.overview(cases, length=10)
    assert table.index.tolist() == [case.document for case in cases]
    for case, (_, row) in zip(cases, table.iterrows(), strict=True):
        assert row["context"] == "…" + case.context.replace("\n", " ⏎ ")[-10:]
        assert row["next"] == repr(case.label)
        shown = [row["p_LM"], row["p_kNN"], row["mixture"]]
        held = [case.lm_probability, case.knn_probability, case.knn_lm_probability]
        assert shown == [tables.percent(p) for p in held]


def test_the_neighbors_are_the_nearest_of_the_case(cases):
    found = cases[0].neighbors
    table = tables.neighbors(cases[0], top=5)
    assert table.index.tolist() == found.documents[:5]
    assert table["next"].tolist() == [repr(label) for label in found.labels[:5]]
    assert table["distance"].tolist() == pytest.approx(found.distance[:5], abs=0.051)
    assert table["share"].tolist() == [tables.percent(share) for share in found.softmax[:5]]


def test_a_short_record_is_json_with_the_same_fields(cases):
    record = cases[0].to_dict()
    written = tables.short_json(record, entries=3, letters=5)
    short = json.loads(written)
    assert list(short) == list(record)
    assert list(short["neighbors"]) == list(record["neighbors"])
    assert short["context"] == record["context"][-5:]
    assert short["neighbors"]["values"] == record["neighbors"]["values"][:3]
    assert short["lm_probability"] == pytest.approx(record["lm_probability"], rel=1e-3)
    assert [pair[1] for pair in short["lm"]] == pytest.approx(
        [p for _, p in record["lm"][:3]], rel=1e-3
    )
    assert len(written.splitlines()) == len(record) + len(record["neighbors"]) + 3


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-9, 9), st.booleans()), min_size=1))
def test_the_best_of_each_document_is_that_of_a_loop(tokens):
    documents, score, among = map(np.array, zip(*tokens, strict=True))
    for chosen in (None, among):
        best = {}
        for i, (document, value, asked) in enumerate(tokens):
            if (chosen is None or asked) and value > best.get(document, (-99, 0))[0]:
                best[document] = (value, i)
        found = tables.best_of_each(score, documents, chosen).tolist()
        assert set(found) == {i for _, i in best.values()}
        assert score[found].tolist() == sorted(score[found].tolist(), reverse=True)


def test_shaded_text_is_escaped_and_marked_where_it_lost():
    text = tables.shaded(["<b>", "a\nb", " &"], [3.0, -0.1, -0.3])
    assert 'rgba(0,158,115,0.75)">&lt;b&gt;</span>' in text
    assert 'rgba(213,94,0,0.05)">a<br>b</span>' in text
    assert 'rgba(213,94,0,0.15); text-decoration: underline"> &amp;</span>' in text
