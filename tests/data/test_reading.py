import io
import json
import os
import sys

import pytest

from manyskills.data.reading import available_splits, check_rows, read_rows_for_prediction, read_split
from manyskills.errors import UserError
from manyskills.tasks import get_task
from tests.data.helpers import clone_folder, defects, write_jsonl

DEFECTS, CLONES, SEARCH = get_task("defect_detection"), get_task("clone_detection"), get_task("code_search")


def read(folder, task=DEFECTS, split="train", **options):
    return read_split(task, str(folder), split, **options)


def problem(folder, task=DEFECTS, **options) -> str:
    with pytest.raises(UserError) as caught:
        read(folder, task, **options)
    assert caught.value.hint
    return caught.value.message


def test_text_is_kept_exactly(tmp_path):
    code = "\tif x:\r\n    y = '\u2028\u0085'\n\n\n  return  y \n"
    write_jsonl(tmp_path / "train.jsonl", [{"code": code, "label": 1, "project": "p"}])
    (row,) = read(tmp_path).rows
    assert row == {"code": code, "label": 1, "project": "p", "id": "train.jsonl:1"}


def test_line_ends_byte_order_mark_and_blank_lines(tmp_path):
    lines = [json.dumps(row).encode() for row in defects(2)]
    (tmp_path / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + lines[0] + b"\r\n\r\n" + lines[1])
    assert [row["id"] for row in read(tmp_path).rows] == ["train.jsonl:1", "train.jsonl:3"]


def test_the_three_formats_give_the_same_rows(tmp_path):
    import csv

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"code": 'a = """x,\n"y"\r\n"""', "label": 1}, {"code": "é\n", "label": 0}]
    for name in ("jsonl", "parquet", "csv"):
        (tmp_path / name).mkdir()
    write_jsonl(tmp_path / "jsonl" / "train.jsonl", rows)
    table = pa.table({"code": [r["code"] for r in rows], "label": pa.array([1.0, 0.0])})
    pq.write_table(table, tmp_path / "parquet" / "train.parquet")
    with (tmp_path / "csv" / "train.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["code", "label"])
        writer.writeheader()
        writer.writerows(rows)
    found = {name: read(tmp_path / name) for name in ("jsonl", "parquet", "csv")}
    assert len({split.digest for split in found.values()}) == 1
    for split in found.values():
        assert [(row["code"], row["label"]) for row in split.rows] == [(r["code"], r["label"]) for r in rows]
    assert [row["id"] for row in found["csv"].rows] == ["train.csv:2", "train.csv:5"]


def test_parquet_without_pyarrow_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        UserError, match=r"train\.parquet: a parquet file needs pyarrow, which is not installed"
    ) as caught:
        read(tmp_path)
    assert "pip install pyarrow" in str(caught.value.hint)


def test_own_ids_count_if_they_are_unique(tmp_path):
    rows = [row | {"id": i} for i, row in enumerate(defects(2))]
    write_jsonl(tmp_path / "train.jsonl", rows)
    assert [row["id"] for row in read(tmp_path).rows] == ["0", "1"]
    write_jsonl(tmp_path / "train.jsonl", [row | {"id": "same"} for row in rows])
    assert [row["id"] for row in read(tmp_path).rows] == ["train.jsonl:1", "train.jsonl:2"]


def test_pairs_are_joined_and_share_their_texts(tmp_path):
    rows = read(clone_folder(tmp_path), CLONES).rows
    assert rows[0]["code1"].startswith("int f0")
    assert (rows[0]["id1"], rows[0]["id2"], rows[0]["label"]) == ("0", "1", 1)
    assert rows[0]["code2"] is rows[1]["code1"] is rows[1]["code2"]


def test_pairs_may_hold_their_texts(tmp_path):
    write_jsonl(tmp_path / "pairs_train.jsonl", [{"code1": "a", "code2": "b", "label": True}])
    assert read(tmp_path, CLONES).rows == [{"code1": "a", "code2": "b", "label": 1, "id": "pairs_train.jsonl:1"}]


def test_by_language_files_are_concatenated(tmp_path):
    for language in ("python", "java", "concode"):
        write_jsonl(tmp_path / f"{language}_train.jsonl", [{"query": f"sort in {language}", "code": "sort()"}])
    rows = read(tmp_path, SEARCH).rows
    assert [(row["language"], row["id"]) for row in rows] == [
        ("java", "java_train.jsonl:1"),
        ("python", "python_train.jsonl:1"),
    ]
    write_jsonl(tmp_path / "train.jsonl", [{"query": "plain", "code": "x"}])
    assert [row["query"] for row in read(tmp_path, SEARCH).rows] == ["plain"]


@pytest.mark.parametrize("name", ["validation.jsonl", "dev.jsonl", "data/valid-00000-of-00001.jsonl"])
def test_other_names_of_a_split(tmp_path, name):
    write_jsonl(tmp_path / name, defects(1))
    assert available_splits(DEFECTS, str(tmp_path)) == ["valid"]
    assert read(tmp_path, split="valid").total == 1


def test_a_pattern_instead_of_a_folder(tmp_path):
    write_jsonl(tmp_path / "my_train.jsonl", defects(2))
    write_jsonl(tmp_path / "my_val.jsonl", defects(3))
    pattern = f"{tmp_path}/my_{{split}}.jsonl"
    assert available_splits(DEFECTS, pattern) == ["train", "valid"]
    assert read(pattern, split="valid").total == 3
    assert "no file for the test split" in problem(pattern, split="test")


def test_columns_rename(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"func": "f()", "target": 1, "label": "old"}])
    (row,) = read(tmp_path, columns={"code": "func", "label": "target"}).rows
    assert row == {"code": "f()", "label": 1, "id": "train.jsonl:1"}


def test_missing_column_shows_wanted_seen_and_nearest(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"func": "f()", "labels": 1}])
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert "train.jsonl:1: missing column 'code', 'label': wanted code, label; found func, labels" in str(caught.value)
    assert "label: labels" in str(caught.value.hint)
    assert "missing column 'code' (as 'fun')" in problem(tmp_path, columns={"code": "fun", "label": "labels"})
    assert "no column 'cod'" in problem(tmp_path, columns={"cod": "func"})


@pytest.mark.parametrize("label", ["1", "yes", 2, -1, 1.0, None, [1]])
def test_wrong_label(tmp_path, label):
    write_jsonl(tmp_path / "train.jsonl", [*defects(1), {"code": "x", "label": label}])
    assert "train.jsonl:2: wanted 0 or 1 in column 'label', found " in problem(tmp_path)


def test_csv_labels_are_text(tmp_path):
    (tmp_path / "train.csv").write_text("code,label\na,0\nb,True\nc,1.0\n")
    assert [row["label"] for row in read(tmp_path).rows] == [0, 1, 1]
    (tmp_path / "train.csv").write_text("code,label\na,0\nb,maybe\n")
    assert "train.csv:3: wanted 0 or 1 in column 'label', found 'maybe' (str)" in problem(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"code": "x", "label": 1', "wanted a JSON object, found broken JSON"),
        (b'["code", 1]', "wanted a JSON object, found ['code', 1] (list)"),
        (b'{"code": "caf\xe9", "label": 1}', "wanted UTF-8, found byte 0xe9 at byte offset"),
        (b'{"code": "  \\n", "label": 1}', "found nothing but blanks"),
        (b'{"code": 7, "label": 1}', "wanted text in column 'code', found 7 (int)"),
        (b'{"label": 1}', "wanted column 'code', found label"),
        (b'{"code": "\\ud800", "label": 1}', "half a surrogate pair at character 0"),
        (b'{"id": "a\\ud83d", "code": "x", "label": 1}', "column 'id', found half a surrogate pair at character 1"),
        (b"[" * 100_000, "JSON"),
    ],
)
def test_a_bad_line_has_its_place(tmp_path, line, message):
    good = json.dumps(defects(1)[0]).encode()
    (tmp_path / "train.jsonl").write_bytes(good + b"\n" + line + b"\n" + good + b"\n")
    found = problem(tmp_path)
    assert f"{tmp_path}/train.jsonl:2: " in found
    assert message in found
    if "offset" in message:
        assert f"offset {len(good) + 1 + line.index(0xE9)} " in found


def test_all_problems_at_once_up_to_a_limit(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [*defects(1), *({"code": "x", "label": "?"} for _ in range(30))])
    found = problem(tmp_path).splitlines()
    assert found[0] == "30 problems in the data:"
    assert len(found) == 22
    assert found[-1].strip() == "and 10 more"


def test_bad_csv(tmp_path):
    (tmp_path / "train.csv").write_bytes(b"code,label\na,1\nb\xff,0\n")
    assert "train.csv:3: wanted UTF-8, found byte 0xff at byte offset 16" in problem(tmp_path)
    (tmp_path / "train.csv").write_text("code,label\na,1\nb\nc,0,1\n")
    assert "train.csv:4: wanted 2 fields as in the header, found 3" in problem(tmp_path)
    (tmp_path / "train.csv").write_text('code,label\n"a,1\n')
    assert "found a broken one" in problem(tmp_path)
    (tmp_path / "train.csv").write_text("code,code\n")
    assert "'code' more than once" in problem_without_hint(tmp_path)


def problem_without_hint(folder) -> str:
    with pytest.raises(UserError) as caught:
        read(folder)
    return caught.value.message


def test_broken_parquet(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no")
    assert "train.parquet: wanted a parquet file" in problem(tmp_path)


def test_references_and_the_table_are_checked(tmp_path):
    clone_folder(tmp_path)
    with (tmp_path / "pairs_train.jsonl").open("a") as file:
        file.write('{"id1": "0", "id2": "99", "label": 1}\n{"id1": null, "id2": "0", "label": 1}\n')
    found = problem(tmp_path, CLONES)
    assert f"pairs_train.jsonl:3: wanted an id of {tmp_path}/functions.jsonl in column 'id2', found '99'" in found
    assert "pairs_train.jsonl:4: wanted an id in column 'id1', found null" in found
    with (tmp_path / "functions.jsonl").open("a") as file:
        file.write('{"id": "3", "code": "x"}\n{"id": 99, "code": ""}\n')
    found = problem(tmp_path, CLONES)
    assert "functions.jsonl:7: wanted each 'id' once, found '3' again (first in line 4)" in found
    assert "functions.jsonl:8: wanted text in column 'code'" in found
    assert "pairs_train.jsonl:3" not in found, "a reference to a bad row is that row's problem"


def test_pairs_without_a_table(tmp_path):
    write_jsonl(tmp_path / "pairs_train.jsonl", [{"id1": "1", "id2": "2", "label": 0}])
    assert "functions.jsonl (or .parquet, .csv) with id, code is not beside them" in problem(tmp_path, CLONES)
    write_jsonl(tmp_path / "pairs_train.jsonl", [{"a": "1", "b": "2", "label": 0}])
    assert "wanted id1, id2, label (or code1, code2 instead of the ids)" in problem(tmp_path, CLONES)


def test_empty_split_missing_split_missing_folder(tmp_path):
    (tmp_path / "train.jsonl").write_text("\n")
    assert "the train split of defect_detection is empty" in problem(tmp_path)
    assert "has no valid split: wanted valid.jsonl, .parquet, .csv; found train.jsonl" in problem(
        tmp_path, split="valid"
    )
    assert "there is no folder" in problem(tmp_path / "nothing")
    assert "found the file" in problem(tmp_path / "train.jsonl")
    (tmp_path / "train.csv").write_text("code,label\n")
    assert "wanted one format, found train.csv and train.jsonl" in problem(tmp_path)


def test_limit_is_a_stratified_sample_in_file_order(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", defects(300))
    whole, part = read(tmp_path), read(tmp_path, limit=60)
    numbers = [int(row["id"].split(":")[1]) for row in part.rows]
    assert len(part.rows) == 60
    assert part.total == whole.total == 300
    assert sum(row["label"] for row in part.rows) == 20
    assert numbers == sorted(numbers)
    assert max(numbers) > 200
    assert read(tmp_path, limit=60).digest == part.digest
    assert read(tmp_path, limit=60, seed=1).digest != part.digest != whole.digest
    assert read(tmp_path, limit=1000).digest == whole.digest


def test_limit_keeps_rare_labels(tmp_path):
    write_jsonl(
        tmp_path / "train.jsonl", [*({"code": f"f{i}", "label": 0} for i in range(99)), {"code": "g", "label": 1}]
    )
    assert [sum(row["label"] for row in read(tmp_path, limit=n).rows) for n in (1, 2, 5)] == [0, 1, 1]
    assert [len(read(tmp_path, limit=n).rows) for n in (1, 2, 5)] == [1, 2, 5]


def test_digest_tells_content_not_names(tmp_path):
    for name in ("a", "b", "c"):
        write_jsonl(tmp_path / name / "train.jsonl", defects(4, start=name == "c"))
    os.rename(tmp_path / "b" / "train.jsonl", tmp_path / "b" / "train-00000-of-00001.jsonl")  # noqa: PTH104
    digests = [read(tmp_path / name).digest for name in ("a", "b", "c")]
    assert digests[0] == digests[1] != digests[2]


def test_the_card_says_how_labels_were_made(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", defects(1))
    assert read(tmp_path).synthetic is None
    (tmp_path / "dataset.json").write_text('{"synthetic": "mutations"}')
    assert read(tmp_path).synthetic == "mutations"
    (tmp_path / "dataset.json").write_text('{"synthetic": null}')
    assert read(tmp_path).synthetic is None
    for bad in ("{", '{"synthetic": 3}', "[]", "\udcff"):
        (tmp_path / "dataset.json").write_bytes(bad.encode("utf-8", "surrogateescape"))
        assert "dataset.json: wanted a JSON object" in problem(tmp_path)


def test_rows_for_prediction_need_no_label(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"code": "f()"}, {"code": "g()", "label": None}])
    assert [row["id"] for row in read_rows_for_prediction(DEFECTS, str(path))] == ["rows.jsonl:1", "rows.jsonl:2"]
    with path.open("a") as file:
        file.write('{"code": "h()", "label": "yes"}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:3: wanted 0 or 1"):
        read_rows_for_prediction(DEFECTS, str(path))
    stream = io.TextIOWrapper(io.BytesIO(b'{"func": "f()"}\n'))
    monkeypatch.setattr(sys, "stdin", stream)
    assert read_rows_for_prediction(DEFECTS, "-", columns={"code": "func"}) == [{"code": "f()", "id": "stdin:1"}]


def test_search_rows_for_prediction(tmp_path):
    path = str(write_jsonl(tmp_path / "queries.jsonl", [{"query": "sort a list"}]))
    assert read_rows_for_prediction(SEARCH, path)[0]["query"] == "sort a list"
    with pytest.raises(UserError, match="missing column 'code'"):
        read_rows_for_prediction(SEARCH, path, inputs=("code",))


def test_pairs_for_prediction_may_name_their_texts(tmp_path):
    path = write_jsonl(clone_folder(tmp_path) / "mine.jsonl", [{"id1": 0, "id2": "1"}])
    assert read_rows_for_prediction(CLONES, str(path))[0]["code2"].startswith("int f1")


@pytest.mark.parametrize("name", ["rows.txt", "missing.jsonl"])
def test_files_that_cannot_be_predicted_on(tmp_path, name):
    (tmp_path / "rows.txt").write_text("x")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=name):
        read_rows_for_prediction(DEFECTS, str(tmp_path / name))
    with pytest.raises(UserError, match="found none"):
        read_rows_for_prediction(DEFECTS, str(tmp_path / "empty.jsonl"))


def test_rows_in_memory(tmp_path):
    import numpy as np

    given = [{"code": "f()", "label": np.int64(1)}]
    assert check_rows(DEFECTS, given, labels_required=True) == [{"code": "f()", "label": 1, "id": "row:1"}]
    assert "id" not in given[0]
    with pytest.raises(UserError, match="row 2: wanted text in column 'code', found nothing but blanks"):
        check_rows(DEFECTS, [{"code": "f()"}, {"code": ""}], labels_required=False)
    with pytest.raises(UserError, match="row 1: missing column 'label'"):
        check_rows(DEFECTS, [{"code": "f()"}], labels_required=True)
    with pytest.raises(UserError, match=r"row 1: wanted a mapping of columns to values, found 'f\(\)'"):
        check_rows(DEFECTS, ["f()"], labels_required=False)
    with pytest.raises(UserError, match="row 1: missing column 'code1', 'code2'"):
        check_rows(CLONES, [{"id1": "1", "id2": "2"}], labels_required=False)
