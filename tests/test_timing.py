"""The clock of the chapters about speed."""

from knnlm.book import timing


def test_the_least_of_several_rounds_a_token_is_kept(monkeypatch):
    now, done = [0.0], []

    def work(name, tokens, takes):
        def once():
            done.append(name)
            now[0] += takes[done.count(name) - 1]
            return tokens

        return once

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    works = {"a": work("a", 10, [5.0, 2.0, 9.0]), "b": work("b", 4, [4.0, 8.0, 2.0])}
    assert timing.least_seconds(works, rounds=3).to_dict() == {"a": 0.2, "b": 0.5}
    assert done == ["a", "b"] * 3
