import gzip
from pathlib import Path

import pytest

from ringhaul.cli.demo import corpus as corpus_module
from ringhaul.cli.demo.corpus import gzip_bits_per_byte, load_corpus


def write_files(root: Path, names: list[str]) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"# {name}\n".encode())


def some_files(root: Path) -> Path:
    write_files(root, [f"package{n % 5}/module{n}.py" for n in range(200)])
    return root


def test_every_file_is_either_trained_on_or_held_out(tmp_path: Path) -> None:
    corpus = load_corpus(some_files(tmp_path))

    assert not set(corpus.train_files) & set(corpus.held_out_files)
    assert len(corpus.train_files) + len(corpus.held_out_files) == 200
    text = corpus.train.tobytes() + corpus.held_out.tobytes()
    assert all(f"# package{n % 5}/module{n}.py\n".encode() in text for n in range(200))
    assert 0 < len(corpus.held_out_files) < 40


def test_the_split_depends_on_relative_paths_only(tmp_path: Path) -> None:
    here, there = some_files(tmp_path / "a"), some_files(tmp_path / "b" / "c")
    # Made in another order, so that the file system may list them in another one.
    (there / "package0" / "module0.py").unlink()
    write_files(there, ["package0/module0.py"])

    one, other = load_corpus(here), load_corpus(there)

    assert one.train_files == other.train_files
    assert one.train.tobytes() == other.train.tobytes()
    assert one.held_out.tobytes() == other.held_out.tobytes()


def test_other_peoples_packages_tests_and_tables_are_left_out(tmp_path: Path) -> None:
    some_files(tmp_path)
    before = load_corpus(tmp_path)
    write_files(tmp_path, ["site-packages/x.py", "test/test_y.py", "a/tests/z.py", "notes.txt"])
    (tmp_path / "table.py").write_bytes(b"1," * 200_000)

    assert load_corpus(tmp_path).train_files == before.train_files


def test_text_is_cut_at_the_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some_files(tmp_path)
    whole = load_corpus(tmp_path)
    monkeypatch.setattr(corpus_module, "TRAIN_BYTES_MAX", 1000)

    cut = load_corpus(tmp_path)

    assert cut.train.tobytes() == whole.train.tobytes()[:1000]
    assert cut.train_files == whole.train_files[: len(cut.train_files)]
    assert len(cut.train_files) < len(whole.train_files)


def test_no_source_text_is_an_error_that_says_where(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_corpus(tmp_path)


def test_this_pythons_library_is_enough_text() -> None:
    corpus = load_corpus()

    assert corpus.train.size > 1_000_000
    assert corpus.held_out.size == corpus_module.HELD_OUT_BYTES_MAX
    assert len(corpus.held_out_files) >= 3
    assert 1.0 < gzip_bits_per_byte(corpus.held_out.tobytes()) < 4.0


def test_gzip_bits_are_of_the_compressed_stream() -> None:
    data = b"ring " * 100

    assert gzip_bits_per_byte(data) == 8 * len(gzip.compress(data, 9)) / len(data)
