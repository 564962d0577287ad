"""Probe files in, probe sets out, and their tokens."""

import dataclasses
import json
import re
import subprocess
import sys
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from replay.probes import (
    Probe,
    ProbeReport,
    ProbeSet,
    builtin_probes,
    load_tokenizer,
    read_probes,
    tokenize,
)
from store.errors import CheckpointError, InvalidInput, InvalidProbes


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def make_tokenizer(*, template: bool = False, **options: Any) -> Any:
    """A word tokenizer over a handful of words; with a template it adds [CLS] and [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "on", "mat"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", **options
    )


def probe_set(*texts: str) -> ProbeSet:
    return ProbeSet("mine", tuple(Probe(text) for text in texts))


def test_a_text_file_has_one_probe_a_line_with_its_spaces_kept(tmp_path: Path) -> None:
    read = read_probes(write(tmp_path, "mine.txt", "b\n  a \nc"))
    assert read.name == "mine"
    assert read.texts == ("b", "  a ", "c")
    assert read.labels == (None, None, None)


def test_a_jsonl_file_gives_texts_labels_and_ids(tmp_path: Path) -> None:
    lines = [
        '{"text": "a", "label": "x", "id": "1", "else": 2}',
        '{"text": "b"}',
        '{"text": "c", "label": 3, "id": ""}',
    ]
    read = read_probes(write(tmp_path, "p.jsonl", "\n".join(lines)), name="other")
    assert read.name == "other"
    assert read.probes == (Probe("a", "x", "1"), Probe("b"), Probe("c", "3"))


def test_a_csv_file_gives_texts_labels_and_ids_whatever_the_order_of_its_columns(tmp_path: Path) -> None:
    read = read_probes(write(tmp_path, "p.CSV", 'id, text,more,label\n1,"a, ""b""\nc",z,x\n,d,z,\n'))
    assert read.probes == (Probe('a, "b"\nc', "x", "1"), Probe("d"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "a é\nb\n"),
        ("p.jsonl", '{"text": "a é"}\n{"text": "b"}\n'),
        ("p.csv", "text\na é\nb\n"),
    ],
)
def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path, name: str, content: str) -> None:
    plain = read_probes(write(tmp_path, name, content))
    windows = read_probes(write(tmp_path, name, b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode()))
    assert windows == plain
    assert windows.report == ProbeReport()


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    assert len(read_probes(write(tmp_path, "p.txt", "a\x0cb\u2028c\x85d\ne\n"))) == 2


@pytest.mark.parametrize(
    ("name", "content", "empties", "duplicates"),
    [
        ("p.txt", "a\n\nb\n \t\na\na\nb\n", (2, 4), ((1, 5, 6), (3, 7))),
        ("p.jsonl", '{"text": "a"}\n\n{"text": " "}\n{"text": "a", "label": "x"}\n', (2, 3), ((1, 4),)),
        ("p.csv", 'text,label\n"a\nb",x\n" ",x\n\n"a\nb",y\n', (4, 5), ((2, 6),)),
    ],
)
def test_empties_are_left_out_and_duplicates_kept_and_both_reported_by_line(
    tmp_path: Path, name: str, content: str, empties: tuple[int, ...], duplicates: tuple[tuple[int, ...], ...]
) -> None:
    read = read_probes(write(tmp_path, name, content))
    assert read.report == ProbeReport(duplicates, empties)
    assert all(text.strip() for text in read.texts)
    assert len(read) == sum(len(lines) for lines in duplicates)


def test_the_report_says_in_sentences_what_it_found() -> None:
    assert ProbeReport().notes() == []
    assert ProbeReport(((1, 5),), (2,)).notes() == [
        "left out 1 empty probe: line 2",
        "kept 1 text given more than once: lines 1, 5",
    ]
    many = ProbeReport(tuple((n, n + 10) for n in range(1, 6)), tuple(range(20, 30)))
    assert many.notes() == [
        "left out 10 empty probes: lines 20, 21, 22, 23, 24, …",
        "kept 5 texts given more than once: lines 1, 11; lines 2, 12; lines 3, 13; …",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "", "the file is empty"),
        ("p.txt", b"\xef\xbb\xbf", "the file is empty"),
        ("p.txt", " \n\n", "no usable probe, only 2 empty probes"),
        ("p.csv", "text,label\n", "no usable probe, only a header"),
        ("p.txt", b"a\nb\xff\n", "line 2, byte 3 is not UTF-8: save the file as UTF-8"),
        ("p.txt", "a\n".encode("utf-16-le"), "line 1 holds a NUL character: save the file as UTF-8, not UTF-16"),
        (
            "p.tsv",
            "a\n",
            "unknown kind of probe file '.tsv': use one of .csv, .jsonl, .txt for texts, .npy, .npz for arrays",
        ),
        ("p", "a\n", "unknown kind of probe file '': use one of .csv, .jsonl, .txt for texts, .npy, .npz for arrays"),
        ("p.csv", "body,label\na,b\n", "no column 'text' in the header, which has 'body', 'label'"),
        ("p.csv", "\na\n", "no column 'text' in the header, which has none"),
        ("p.csv", "text,text\na,b\n", "more than one column 'text' in the header, which has 'text', 'text'"),
        ("p.csv", "text\na\nb, c\n", "line 3 has 2 cells, the header 1: quote a text that holds commas"),
        ("p.csv", 'text\na\n"b" c\n', "line 3 is not CSV: ',' expected after '\"'"),
        ("p.jsonl", '{"text": "a"}\n{"text": \n', "line 2 is not JSON: Expecting value at column 10"),
        ("p.jsonl", "[" * 100_000, "line 1 is not JSON that can be read"),
        ("p.jsonl", '["a"]\n', 'line 1 is not a JSON object such as {"text": "…"}'),
        ("p.jsonl", '{"text": "a"}\n{"body": "a", "id": 1}\n', "line 2 has no key 'text', only 'body', 'id'"),
        ("p.jsonl", "{}\n", "line 1 has no key 'text', only none"),
        ("p.jsonl", '{"text": 3}\n', "line 1: 'text' is 3, not a string"),
        ("p.jsonl", '{"text": null}\n', "line 1: 'text' is null, not a string"),
        ("p.jsonl", '{"text": "a", "label": ["x"]}\n', "line 1: 'label' is [\"x\"], not a string"),
        ("p.jsonl", '{"text": "a", "id": true}\n', "line 1: 'id' is true, not a string"),
        ("p.jsonl", '{"text": "\\ud83d"}\n', "line 1 holds half of a surrogate pair, which is no character"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_line_and_the_remedy(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(InvalidProbes) as caught:
        read_probes(path)
    assert str(caught.value) == f"{path}: {message}"


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InvalidProbes, match=r"nothing\.txt: no such file$"):
        read_probes(tmp_path / "nothing.txt")
    with pytest.raises(
        InvalidProbes, match=r"a folder, not a file: name one file \(\.csv, \.jsonl, \.txt\) inside it$"
    ):
        read_probes(tmp_path)


def test_the_digest_knows_texts_labels_ids_and_their_order_but_not_the_name() -> None:
    base = ProbeSet("one", (Probe("a", "x", "1"), Probe("b", None, None)))
    assert re.fullmatch(r"[0-9a-f]{64}", base.digest)
    assert dataclasses.replace(base, name="two").digest == base.digest
    others = [
        ProbeSet("one", base.probes[::-1]),
        ProbeSet("one", base.probes[:1]),
        ProbeSet("one", (Probe("a", "x", "1"), Probe("b ", None, None))),
        ProbeSet("one", (Probe("a", "y", "1"), Probe("b", None, None))),
        ProbeSet("one", (Probe("a", "x", "2"), Probe("b", None, None))),
        ProbeSet("one", (Probe("a", "x", "1"), Probe("b", "None", None))),
        ProbeSet("one", (Probe("a", "1", "x"), Probe("b", None, None))),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == len(others) + 1


def test_the_digest_of_one_content_is_the_same_from_every_kind_of_file(tmp_path: Path) -> None:
    files = [
        write(tmp_path, "p.txt", "é 1\nb\n"),
        write(tmp_path, "p.csv", "text,label\né 1,\nb,\n"),
        write(tmp_path, "p.jsonl", '{"text": "\\u00e9 1"}\n\n{"text": "b", "label": null}\n'),
    ]
    assert len({read_probes(path).digest for path in files}) == 1


def test_the_digest_is_stable_across_versions() -> None:
    # Computed by hand from the definition: a digest that moves makes every stored capture stale.
    content = b'["replay probe set 1",[["caf\\u00e9","x",null]]]'
    import hashlib

    assert ProbeSet("any", (Probe("café", "x"),)).digest == hashlib.sha256(content).hexdigest()


def test_a_set_without_a_probe_is_refused() -> None:
    with pytest.raises(InvalidProbes, match=r"probe set 'none' holds no probe"):
        ProbeSet("none", ())


def test_the_built_in_set_has_64_unique_texts_for_each_of_8_topics_and_no_finding() -> None:
    topics = builtin_probes()
    assert topics.name == "topics"
    assert len(topics) == len(set(topics.texts)) == 512
    assert Counter(Counter(topics.labels).values()) == {64: 8}
    assert topics.report == ProbeReport()
    assert all(text == text.strip() for text in topics.texts)
    assert len({probe.id for probe in topics.probes}) == 512


def test_every_prefix_of_the_built_in_set_is_balanced() -> None:
    labels = builtin_probes().labels
    for n in range(1, 513):
        counts = Counter(labels[:n])
        assert max(counts.values()) - min((counts[label] for label in set(labels)), default=0) <= 1


def test_the_licence_of_the_built_in_set_is_shipped_beside_it() -> None:
    notice = (resources.files("replay") / "data" / "NOTICE").read_text(encoding="utf-8")
    assert "topics.jsonl" in notice
    assert "WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved." in notice
    assert "Permission to use, copy, modify and distribute this software" in notice
    assert "LICENSEE agrees to preserve same." in notice


def test_tokens_are_those_of_the_tokenizer_called_by_its_user() -> None:
    tokenizer = make_tokenizer(template=True)
    probes = probe_set("the cat sat", "mat")
    tokens = tokenize(probes, tokenizer, max_length=8)
    assert tokens.ids == ((1, 3, 4, 5, 2), (1, 7, 2))
    assert tokens.ids == tuple(tuple(tokenizer(text)["input_ids"]) for text in probes.texts)
    assert tokens.cut == ()


def test_only_texts_longer_than_the_limit_are_named_as_cut() -> None:
    tokenizer = make_tokenizer(template=True)
    tokens = tokenize(probe_set("the cat", "the cat sat", "the cat sat on", "mat"), tokenizer, max_length=5)
    assert tokens.ids[1:3] == ((1, 3, 4, 5, 2), (1, 3, 4, 5, 2))
    assert tokens.cut == (2,)
    assert len(tokens.cut) == 1


def test_a_text_longer_than_the_tokenizer_expects_is_cut_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    tokens = tokenize(probe_set("the cat sat on the mat"), make_tokenizer(model_max_length=3), max_length=4)
    assert tokens.ids == ((3, 4, 5, 6),)
    assert tokens.cut == (0,)
    assert not caplog.records


def test_the_models_positions_lower_the_limit_and_never_raise_it() -> None:
    tokenizer = make_tokenizer()
    assert tokenize(probe_set("the cat sat"), tokenizer, max_length=8, n_positions=2).ids == ((3, 4),)
    assert tokenize(probe_set("the cat sat"), tokenizer, max_length=2, n_positions=8).ids == ((3, 4),)
    assert tokenize(probe_set("the " * 200), tokenizer).cut == (0,)


@pytest.mark.parametrize("template", [False, True])
def test_a_text_without_a_token_of_its_own_is_refused_by_name(*, template: bool) -> None:
    probes = ProbeSet("mine", (Probe("cat"), Probe(" \u3000")))
    with pytest.raises(InvalidProbes, match=r"^probe 2 of 'mine', ' \\u3000', gives no token with this tokenizer: "):
        tokenize(probes, make_tokenizer(template=template), max_length=8)


def test_a_limit_without_room_for_a_text_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"cut to 0 tokens: give a max_length of 1 or more"):
        tokenize(probe_set("cat"), make_tokenizer(), max_length=0)
    with pytest.raises(InvalidInput, match=r"a limit of 2 tokens leaves no room beside the special tokens"):
        tokenize(probe_set("cat"), make_tokenizer(template=True), max_length=2)


def test_the_built_in_set_can_be_tokenized() -> None:
    tokens = tokenize(builtin_probes(), make_tokenizer())
    assert len(tokens.ids) == 512
    assert tokens.cut == ()


def test_a_saved_tokenizer_is_loaded_from_its_folder(tmp_path: Path) -> None:
    make_tokenizer(template=True).save_pretrained(tmp_path)
    assert tokenize(probe_set("cat"), load_tokenizer(tmp_path)).ids == ((1, 4, 2),)


def test_a_folder_without_tokenizer_files_is_refused(tmp_path: Path) -> None:
    # For this model type transformers would build a tokenizer with an empty vocabulary.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_neox", "vocab_size": 8}))
    with pytest.raises(CheckpointError, match=r"no tokenizer files \(such as tokenizer\.json\) beside the weights$"):
        load_tokenizer(tmp_path)


def test_a_damaged_tokenizer_and_a_missing_folder_are_one_line_each(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version":')
    with pytest.raises(CheckpointError, match=r"no tokenizer could be loaded from its files \(.+\)$") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"gone: no such folder to load a tokenizer from$"):
        load_tokenizer(tmp_path / "gone")


def test_reading_probes_does_not_import_torch_or_transformers() -> None:
    code = "import sys, replay.probes as p; p.builtin_probes(); print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
