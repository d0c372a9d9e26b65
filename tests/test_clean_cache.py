"""What the cache is rid of: artifacts that no chapter of the last builds used, and nothing else."""

import json

import build_book
import clean_cache
import pytest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(build_book, "ROOT", tmp_path)
    monkeypatch.setenv("KNNLM_CACHE", str(tmp_path / "cache"))
    for name in ("factbook/model-0123456789abcdef", "factbook/index-0123456789abcdef"):
        folder = tmp_path / "cache" / name
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(bytes(1000))
    for other in ("korean/text", "SmolLM2", "factbook/model-mine"):
        (tmp_path / "cache" / other).mkdir(parents=True)
    return tmp_path / "cache"


def left(cache):
    return {path.relative_to(cache).as_posix() for path in cache.glob("*/*")}


def test_before_a_build_nothing_is_removed(cache, capsys):
    before = left(cache)
    assert clean_cache.main() == 1
    assert "Run make book first" in capsys.readouterr().out
    assert left(cache) == before


@pytest.mark.parametrize("small", [False, True])
def test_what_a_chapter_used_stays(cache, capsys, small):
    results = build_book.Place(build_book.ROOT, small).results
    results.mkdir(parents=True)
    used = {"number": 1, "artifacts": ["factbook/model-0123456789abcdef"]}
    (results / "01_x.json").write_text(json.dumps(used))
    (results / "02_y.json").write_text(json.dumps({"not here": "no apt-get"}))
    assert clean_cache.main() == 0
    assert "removing 1 that are not, 0.0 GB" in capsys.readouterr().out
    kept = {"factbook/model-0123456789abcdef", "korean/text", "factbook/model-mine"}
    assert left(cache) == kept
    assert (cache / "SmolLM2").is_dir()
