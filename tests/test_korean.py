"""The Korean text: how packages are fetched, what is kept of their pages, and what is refused."""

import json
import shutil
import subprocess
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knnlm.artifacts import find, read_complete
from knnlm.corpora import korean
from knnlm.errors import InputError

PAGE = """<html><head><title>창</title><script>var 변수 = "코드";</script></head><body>
<h1>창을 여는 방법 설명</h1>
<p>파일을 열려면 <span class="MAC">Command</span><span>Ctrl</span>+O를 누르십시오.</p>
<p>This paragraph was never translated, 한국어는 없음.</p>
<ul><li><p>메뉴에서   <b>파일</b>을
 선택합니다.</p></li></ul>
<p>{name}은 자리 표시자입니다.</p><p>짧다</p></body></html>"""
HELP = """<page xmlns="http://projectmallard.org/1.0/"><info>
<credit><name>아무개 씨의 이름</name></credit>
<desc>설명은 본문이 아닙니다.</desc></info><title>컴퓨터를 끄는 방법</title>
<p>시스템 메뉴에서 <gui>끄기</gui>를 누르십시오.</p></page>"""


def test_the_corpus_is_clean_korean_without_a_line_twice():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where the system has other versions of the packages
        documents = {document.name: document.text for document in korean.documents()}
    folder = find(f"korean/text-{korean.TEXT_SHA256[:16]}", "korean")
    record = read_complete(folder, "korean")
    assert set(record["packages"]) == set(korean.PACKAGES)
    assert len(documents) == 1854 or record["sha256"] != korean.TEXT_SHA256
    assert 1500 < len(documents) < 2500
    lines = [line for text in documents.values() for line in text.splitlines()]
    assert len(set(lines)) == len(lines)
    text = "".join(lines)
    assert 1.2e6 < len(text) < 1.6e6
    assert len(korean.HANGUL.findall(text)) > 0.6 * len(text)
    assert not korean.PLACEHOLDER.search(text)
    assert "&nbsp;" not in text
    assert "\xa0" not in text


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """A cache of its own, and packages with one document; returns how often they were fetched."""
    fetched = []

    def fetch(names, folder):
        fetched.append(names)
        return {name: {"version": "9", "sha256": ""} for name in names}

    monkeypatch.setenv("KNNLM_CACHE", str(tmp_path))
    monkeypatch.setattr(korean, "fetch", fetch)
    monkeypatch.setattr(
        korean, "_read", lambda folder: [("한국", ["가나다라마바사"] * 2 + ["긴 문장 " * 30])]
    )
    return fetched


@pytest.mark.filterwarnings("ignore:This Korean text is not the book's")
def test_what_is_made_once_is_read_again_and_damage_is_said(tmp_path, packages, monkeypatch):
    assert [*korean.documents()] == [*korean.documents()]
    assert len(packages) == 1
    (file,) = tmp_path.rglob("documents.jsonl")
    file.write_text('["one", "둘"]\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"documents\.jsonl is damaged: its checksum"):
        [*korean.documents()]
    monkeypatch.setattr(korean, "TEXT_SHA256", "of another way to clean")
    assert len([*korean.documents()]) == 1
    assert len(packages) == 2


def test_other_versions_of_the_packages_are_said(tmp_path, packages, monkeypatch):
    with pytest.warns(UserWarning, match=r"numbers will differ.*'gnome-user-docs': '9'"):
        korean._make(tmp_path / "a")
    name, text = json.loads((tmp_path / "a" / "documents.jsonl").read_text())
    assert name == "한국 1: 가나다라마바사"
    assert text.count("\n") == 1
    sha256 = korean._sha256(tmp_path / "a" / "documents.jsonl")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(korean, "TEXT_SHA256", sha256)
        korean._make(tmp_path / "b")


def test_pages_give_their_paragraphs(tmp_path):
    (tmp_path / "page.html").write_text(PAGE, encoding="utf-8")
    (tmp_path / "page.page").write_text(HELP, encoding="utf-8")
    paragraphs = [*korean._html_paragraphs(tmp_path / "page.html")]
    (_, text), *none = korean.clean([("책", [*paragraphs, "문장이 더 있어야 문서가 됩니다. " * 5])])
    assert not none
    assert text.splitlines()[:3] == [
        "창을 여는 방법 설명",
        "파일을 열려면 Ctrl+O를 누르십시오.",
        "메뉴에서 파일을 선택합니다.",
    ]
    assert len(text.splitlines()) == 4
    assert [*korean._xml_paragraphs(tmp_path / "page.page")] == [
        "컴퓨터를 끄는 방법",
        "시스템 메뉴에서 끄기를 누르십시오.",
    ]


@given(st.lists(st.lists(st.text("가나다 ab%s\n", max_size=60), max_size=8), max_size=6))
def test_cleaning_keeps_no_line_twice_and_nothing_that_is_not_mostly_hangul(raw):
    documents = [*korean.clean(("책", lines) for lines in raw)]
    lines = [line for _, text in documents for line in text.split("\n")]
    assert len(set(lines)) == len(lines)
    assert len({name for name, _ in documents}) == len(documents)
    offered = {" ".join(line.split()) for lines in raw for line in lines}
    assert set(lines) <= offered
    for line in lines:
        hangul = sum("가" <= c <= "힣" for c in line)
        assert hangul >= 5
        assert hangul >= sum(c.isalpha() for c in line) - hangul
        assert "%s" not in line
    assert all(len(text) >= korean.SHORTEST_DOCUMENT for _, text in documents)


def test_without_a_package_client_the_alternatives_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"no apt-get and dpkg-deb here.*kowiki.*your own files"):
        korean.fetch(["some-package"], tmp_path)


def test_a_package_that_cannot_be_fetched_is_one_sentence_and_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"no-such-package-at-all cannot be fetched: .*kowiki"):
        korean.fetch(["no-such-package-at-all"], tmp_path)


def test_a_package_is_fetched_with_its_version_and_unpacked(tmp_path, monkeypatch):
    """A package made here, from a client that finds it after the list of packages came."""
    content = tmp_path / "content"
    (content / "DEBIAN").mkdir(parents=True)
    (content / "DEBIAN" / "control").write_text(
        "Package: words\nVersion: 2:1.5-3\nArchitecture: all\nDescription: words\n"
        "Maintainer: nobody <nobody@localhost>\n"
    )
    (content / "usr").mkdir()
    (content / "usr" / "word").write_text("낱말")
    folder, calls = tmp_path / "folder", []
    folder.mkdir()
    run = korean._run

    def client(*command, cwd):
        calls.append(command)
        if command[0] != "apt-get":
            return run(*command, cwd=cwd)
        if command[-1] == "update":
            (cwd / "lists" / "list").write_text("")
        elif (cwd / "lists" / "list").exists():
            run("dpkg-deb", "--build", str(content), str(cwd / "words_2%3a1.5-3_all.deb"), cwd=cwd)
        else:
            return subprocess.CompletedProcess(command, 100, "", "E: No packages found\n")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(korean, "_run", client)
    packages = korean.fetch(["words"], folder)
    assert packages["words"]["version"] == "2:1.5-3"
    assert len(packages["words"]["sha256"]) == 64
    assert (folder / "words" / "usr" / "word").read_text() == "낱말"
    assert [c[-1] for c in calls if c[0] == "apt-get"] == ["words", "update", "words"]
    assert not list(folder.glob("*.deb"))

    shutil.rmtree(folder / "words")
    (folder / "words").write_text("in the way")
    with pytest.raises(InputError, match=r"words cannot be unpacked: .*Not a directory\. Or use"):
        korean.fetch(["words"], folder)
