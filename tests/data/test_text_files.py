import gzip
import json
import lzma

import pytest
import zstandard

from glm_jax.data import DataError
from glm_jax.data.text_files import TextFiles, find_files, is_held_out


def read(*paths, documents="blank_line", text_key="text", skip_bad=False):
    files = TextFiles([str(path) for path in paths], documents=documents, text_key=text_key, skip_bad=skip_bad)
    return [text for text, _ in files], files.skipped


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("blank_line", ["one\ntwo", "three"]),
        ("line", ["one", "two", "three"]),
        ("file", ["one\ntwo\n\n \nthree"]),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_where_documents_end(tmp_path, documents, expected, newline):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "one\ntwo\n\n \nthree\n".replace("\n", newline).encode())
    assert read(path, documents=documents) == (expected, 0)


@pytest.mark.parametrize(
    ("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstandard.compress)]
)
def test_compressed_json_lines(tmp_path, suffix, compress):
    path = tmp_path / f"a.jsonl{suffix}"
    lines = "".join(json.dumps({"text": f"dög {i}", "id": i}) + "\n" for i in range(3000))
    path.write_bytes(compress(lines.encode()))
    assert read(path)[0] == [f"dög {i}" for i in range(3000)]
    if suffix:
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(DataError, match=rf"a.jsonl{suffix}: the compressed file is damaged"):
            read(path)


def test_several_zstd_frames_are_one_file(tmp_path):
    path = tmp_path / "a.txt.zst"
    path.write_bytes(zstandard.compress(b"one\n") + zstandard.compress(b"two\n"))
    assert read(path, documents="line")[0] == ["one", "two"]


@pytest.mark.parametrize("documents", ["blank_line", "line", "file"])
def test_text_that_is_not_utf8(tmp_path, documents):
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\n\nab\xff\n\nlast\n")
    with pytest.raises(DataError, match=r"a\.txt, line 3: not UTF-8 \(byte 0xff at column 3\)"):
        read(path, documents=documents)
    texts, skipped = read(path, documents=documents, skip_bad=True)
    assert skipped == 1
    assert texts == ([] if documents == "file" else ["good", "last"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ('{"body": "x", "id": 1}', "line 2: no text under 'text' \\(found: 'body', 'id'\\); set text_key"),
        ('{"text": 3}', "line 2: no text under 'text'"),
        ("[1]", "line 2: no text under 'text' \\(found: list\\)"),
        (r'{"text": "\ud800"}', "line 2: the text holds half a surrogate pair"),
    ],
)
def test_bad_json_lines(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "x"}}\n{line}\n{{"text": " "}}\n\n{{"text": "y"}}\n')
    with pytest.raises(DataError, match=message):
        read(path)
    assert read(path, skip_bad=True) == (["x", "y"], 1)


def test_progress_reaches_one(tmp_path):
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path in paths:
        path.write_text("x\n" * 10)
    shares = [share for _, share in TextFiles(list(map(str, paths)), documents="line", text_key="", skip_bad=False)]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_globs(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.jsonl.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_files(f"{tmp_path}/*.txt") == [f"{tmp_path}/a.txt", f"{tmp_path}/b.txt"]
    assert len(find_files(f"{tmp_path}/**/*.*")) == 3
    (tmp_path / "d.pdf").touch()
    with pytest.raises(DataError, match=r"d\.pdf: a text file ends in"):
        find_files(f"{tmp_path}/*.*")
    with pytest.raises(DataError, match="no file matches"):
        find_files(f"{tmp_path}/*.zip")
    with pytest.raises(DataError, match="is a directory"):
        find_files(str(tmp_path))


def test_held_out_share():
    held_out = sum(is_held_out(f"document {i}", 0.1) for i in range(20_000)) / 20_000
    assert abs(held_out - 0.1) < 0.01
    assert not is_held_out("anything", 0.0)
