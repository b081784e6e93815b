"""Languages and directions: which rows a record becomes, how it tells its variant, and what if it does not."""

from __future__ import annotations

from collections import Counter

import pytest

from manyskills.config import TrainConfig
from manyskills.data.preparation import read_tasks, task_source
from manyskills.data.reading import check_rows, read_rows_for_prediction, read_split
from manyskills.errors import UserError
from manyskills.tasks import SPLITS, get_task
from tests.data.helpers import write_jsonl

TRANSLATION, SUMMARY = get_task("code_translation"), get_task("code_summarization")


def both_sides(count, start=0):
    return [
        {"id": f"r{n}", "java": f"int get{n}() {{}}", "csharp": f"int Get{n}() {{}}"}
        for n in range(start, start + count)
    ]


def functions(count, **more):
    return [{"id": f"f{n}", "code": f"def f{n}(): pass", "summary": f"Number {n}."} | more for n in range(count)]


@pytest.fixture
def translation(tmp_path):
    for split in SPLITS:
        write_jsonl(tmp_path / "translation" / f"{split}.jsonl", both_sides(12))
    return tmp_path / "translation"


@pytest.fixture
def summaries(tmp_path):
    for split in SPLITS:
        write_jsonl(tmp_path / "code_summarization" / f"python_{split}.jsonl", functions(6))
        write_jsonl(tmp_path / "code_summarization" / f"java_{split}.jsonl", functions(3))
    return tmp_path / "code_summarization"


def read(task, folder, **options):
    return read_split(task, str(folder), "train", **options)


def test_a_record_becomes_a_row_of_each_direction(translation):
    found = read(TRANSLATION, translation)
    assert [row["id"] for row in found.rows[:3]] == ["r0:java_csharp", "r0:csharp_java", "r1:java_csharp"]
    assert {row["variant"] for row in found.rows} == {"java_csharp", "csharp_java"}
    assert found.total == 24
    assert found.rows[1]["java"] == "int get0() {}"
    one = read(TRANSLATION, translation, variants=["csharp_java"])
    assert [row["id"] for row in one.rows[:2]] == ["r0:csharp_java", "r1:csharp_java"]
    assert one.digest != found.digest != read(TRANSLATION, translation, variants=["java_csharp"]).digest
    assert found.digest == read(TRANSLATION, translation, variants=["csharp_java", "java_csharp"]).digest


def test_ids_that_repeat_become_places_and_keep_their_direction(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [row | {"id": "same"} for row in both_sides(2)])
    ids = [row["id"] for row in read(TRANSLATION, tmp_path).rows]
    assert ids == [f"train.jsonl:{line}:{name}" for line in (1, 2) for name in ("java_csharp", "csharp_java")]


def test_languages_come_from_file_names_or_the_column(summaries, tmp_path):
    found = read(SUMMARY, summaries)
    assert Counter(row["variant"] for row in found.rows) == {"python": 6, "java": 3}
    assert Counter(row["variant"] for row in read(SUMMARY, summaries, variants=["java"]).rows) == {"java": 3}
    write_jsonl(tmp_path / "mixed" / "train.jsonl", [*functions(2, language="Python"), *functions(1, language="java")])
    by_column = read(SUMMARY, tmp_path / "mixed")
    assert [row["variant"] for row in by_column.rows] == ["python", "python", "java"]
    write_jsonl(tmp_path / "java_own_train.jsonl", functions(2))
    pattern = read(SUMMARY, tmp_path / "*_own_{split}.jsonl")
    assert [row["variant"] for row in pattern.rows] == ["java", "java"]


def test_limits_are_drawn_after_expansion_and_by_variant(translation, summaries):
    assert Counter(row["variant"] for row in read(SUMMARY, summaries, limit=3).rows) == {"python": 2, "java": 1}
    limited = read(TRANSLATION, translation, limit=7)
    assert sorted(Counter(row["variant"] for row in limited.rows).values()) == [3, 4]
    assert limited.total == 24


def test_untold_languages_need_one_choice(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", functions(2))
    with pytest.raises(UserError, match=r"train\.jsonl:1: nothing tells whether this row is python, java") as error:
        read(SUMMARY, tmp_path)
    assert "tasks.code_summarization.variants=[python]" in str(error.value.hint)
    assert {row["variant"] for row in read(SUMMARY, tmp_path, variants=["java"]).rows} == {"java"}


def test_wrong_languages_and_variants(summaries, tmp_path):
    with pytest.raises(UserError, match="code_summarization has no variant 'pyton'") as error:
        read(SUMMARY, summaries, variants=["pyton"])
    assert error.value.hint == "did you mean 'python'?"
    with pytest.raises(UserError, match="wanted at least one"):
        read(SUMMARY, summaries, variants=[])
    write_jsonl(tmp_path / "column" / "train.jsonl", [*functions(1, language="python"), *functions(1, language="go")])
    with pytest.raises(UserError, match=r"train\.jsonl:2: wanted one of python, java in column 'language', found 'go'"):
        read(SUMMARY, tmp_path / "column")
    with pytest.raises(UserError, match="no rows of code_summarization's variant java; found python"):
        write_jsonl(tmp_path / "one" / "python_train.jsonl", functions(1))
        read(SUMMARY, tmp_path / "one", variants=["python", "java"])
    write_jsonl(summaries / "go_train.jsonl", functions(1))
    with pytest.raises(UserError, match=r"go_train\.jsonl:1: the file is of go, and code_summarization knows python"):
        read(SUMMARY, summaries)
    assert len(read(SUMMARY, summaries, variants=["python", "java"]).rows) == 9


def test_a_missing_side_has_a_place(tmp_path):
    rows = both_sides(3)
    del rows[1]["csharp"]
    rows[2]["java"] = "  "
    write_jsonl(tmp_path / "train.jsonl", rows)
    with pytest.raises(UserError) as error:
        read(TRANSLATION, tmp_path)
    assert "train.jsonl:2: wanted column 'csharp'" in error.value.message
    assert "train.jsonl:3: wanted text in column 'java', found nothing but blanks" in error.value.message
    assert error.value.message.startswith("2 problems"), "each once, though both directions need it"
    write_jsonl(tmp_path / "train.jsonl", [{"java": "a"}])
    with pytest.raises(UserError, match="missing column 'csharp'"):
        read(TRANSLATION, tmp_path)


def test_splits_must_hold_the_same_variants(summaries):
    (summaries / "java_valid.jsonl").unlink()
    values = {"tasks": ["code_summarization"], "data_dir": str(summaries.parent)}
    config = TrainConfig.model_validate(values)
    with pytest.raises(UserError, match="the valid split has no rows of java, and another split has") as error:
        read_tasks(config, SPLITS)
    assert "tasks.code_summarization.variants" in str(error.value.hint)
    chosen = TrainConfig.model_validate(values | {"tasks": {"code_summarization": {"variants": ["python"]}}})
    assert len(read_tasks(chosen, SPLITS)["valid"]["code_summarization"].rows) == 6


def test_folders_may_have_short_names(translation, tmp_path):
    config = TrainConfig.model_validate({"tasks": ["code_translation"], "data_dir": str(tmp_path)})
    assert task_source(config, "code_translation") == str(translation)
    (tmp_path / "code_translation").mkdir()
    assert task_source(config, "code_translation") == str(tmp_path / "code_translation")


def predicted(rows, task=TRANSLATION, **options):
    return [(row["id"], row["variant"]) for row in check_rows(task, rows, labels_required=False, **options)]


def test_rows_to_predict_on_need_only_their_source():
    assert predicted([{"id": "a", "java": "x"}, {"id": "b", "csharp": "y", "java": 7, "variant": "csharp_java"}]) == [
        ("a:java_csharp", "java_csharp"),
        ("b:csharp_java", "csharp_java"),
    ]
    rows = [{"java": "x", "csharp": "y"}]
    assert predicted(rows, variant="csharp_java") == [("row:1:csharp_java", "csharp_java")]
    assert predicted(rows, variants=["java_csharp"]) == [("row:1:java_csharp", "java_csharp")]
    with pytest.raises(UserError, match="row 1: nothing tells whether this row is java_csharp, csharp_java"):
        predicted(rows)
    with pytest.raises(UserError, match="nothing tells"):
        predicted([{"code": "x"}])
    with pytest.raises(UserError, match="missing column 'java'"):
        predicted([{"code": "x"}], variant="java_csharp")
    with pytest.raises(UserError, match="unknown variant 'java_cs'"):
        predicted(rows, variant="java_cs")
    with pytest.raises(UserError, match="wanted one of java_csharp in column 'variant', found 'csharp_java'"):
        predicted([{"java": "x", "variant": "csharp_java"}], variants=["java_csharp"])
    with pytest.raises(UserError, match="has no variants"):
        check_rows(get_task("code_search"), [{"query": "q"}], labels_required=False, variant="java")


def test_rows_that_were_read_before_keep_their_ids(translation):
    rows = read(TRANSLATION, translation).rows
    again = check_rows(TRANSLATION, rows, labels_required=True)
    assert again == rows


def test_a_file_to_predict_on_tells_its_language(tmp_path):
    rows = [{"id": f"f{n}", "code": "x = 1"} for n in range(2)]
    path = write_jsonl(tmp_path / "java_new.jsonl", rows)
    assert [row["variant"] for row in read_rows_for_prediction(SUMMARY, str(path))] == ["java", "java"]
    plain = write_jsonl(tmp_path / "new.jsonl", rows)
    assert [row["variant"] for row in read_rows_for_prediction(SUMMARY, str(plain), variant="python")] == ["python"] * 2
    with pytest.raises(UserError, match="nothing tells") as error:
        read_rows_for_prediction(SUMMARY, str(plain))
    assert "or give the variant" in str(error.value.hint)
    with pytest.raises(UserError, match="missing column 'code'"):
        read_rows_for_prediction(SUMMARY, str(write_jsonl(tmp_path / "java_bad.jsonl", [{"codes": "x"}])))
    renamed = write_jsonl(tmp_path / "python_other.jsonl", [{"body": "x = 1"}])
    assert read_rows_for_prediction(SUMMARY, str(renamed), columns={"code": "body"})[0]["code"] == "x = 1"
