"""Prompts and answers as tokens: whole frames, cut sources, ends only where an answer is whole, and no injection."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoTokenizer

from manyskills.config import TaskConfig
from manyskills.data.frames import Frame
from manyskills.data.preparation import positive_rates, prepare, refuse_one_label
from manyskills.data.prompts import PromptReader, build_prompts
from manyskills.data.reading import check_rows
from manyskills.data.rows import SplitRows
from manyskills.data.tokens import Template, read_template
from manyskills.errors import UserError
from manyskills.tasks import get_task

SAVED = {
    "code_translation": {"java_csharp": Frame("<s>T:", "</s>", "</s>"), "csharp_java": Frame("<s>U:", "|", "</s>")}
}
EOS = 2


def split_of(name, rows, split="train", **options):
    checked = check_rows(get_task(name), rows, labels_required=True, **options)
    return SplitRows(get_task(name), split, checked, len(checked), "memory", "")


def methods(*sizes):
    return [{"id": f"m{n}", "java": "j" * source, "csharp": "c" * target} for n, (source, target) in enumerate(sizes)]


@pytest.fixture
def tokenizer(backbone_folder):
    return AutoTokenizer.from_pretrained(backbone_folder("qwen2"))


@pytest.fixture
def build(tokenizer):
    def make(rows, options, saved=None, max_length=40, positions=80, family="decoder", routes=None):
        reader = PromptReader(tokenizer, family, max_length, positions, routes)
        tasks = {name: TaskConfig.model_validate(given) for name, given in options.items()}
        return build_prompts({"train": rows}, tasks, reader, saved)

    return make


def translated(build, sizes, saved=SAVED, variants=("java_csharp",), **more):
    options = {"max_new_tokens": 12, "variants": list(variants), **more.pop("options", {})}
    rows = {"code_translation": split_of("code_translation", methods(*sizes), variants=list(variants))}
    return build(rows, {"code_translation": options}, saved, **more)


def test_a_prompt_is_the_frame_around_the_source(build, tokenizer):
    built = translated(build, [(4, 3)])
    part = built.prompted["train"]["code_translation"]
    assert tokenizer.decode(built.store.prompt(0)) == "<s>T:jjjj</s>"
    assert tokenizer.decode(built.store.answer(0)) == "ccc</s>"
    assert built.store.prompt(0)[0] == 0
    assert (part.references_E.tolist(), part.variants_E.tolist()) == (["ccc"], ["java_csharp"])
    assert part.labels_E is None
    assert built.store.prompt_ids_T.dtype == built.store.answer_ids_T.dtype == np.int32
    assert built.frames == SAVED, "frames of other variants are kept where a module had them"


def test_both_directions_share_their_tokens(build, tokenizer):
    built = translated(build, [(4, 3), (5, 2)], variants=("java_csharp", "csharp_java"))
    part = built.prompted["train"]["code_translation"]
    texts = [tokenizer.decode(built.store.prompt(int(index))) for index in part.prompts_E]
    assert texts == ["<s>T:jjjj</s>", "<s>U:ccc|", "<s>T:jjjjj</s>", "<s>U:cc|"]
    assert built.store.lengths_S.tolist() == (built.store.prompt_lengths_S + built.store.answer_lengths_S).tolist()
    assert part.take(np.array([2])).references_E.tolist() == ["cc"]


def test_the_source_alone_is_cut(build, tokenizer):
    frame = len(tokenizer("T:")["input_ids"]) + 2
    built = translated(build, [(100, 3)], max_length=20)
    prompt = built.store.prompt(0)
    assert len(prompt) == 20
    assert tokenizer.decode(prompt) == f"<s>T:{'j' * (20 - frame)}</s>"
    near_the_end = translated(build, [(100, 3)], max_length=75, positions=80)
    assert len(near_the_end.store.prompt(0)) == 80 - 12, "there is room for an answer of any length"
    assert len(translated(build, [(100, 3)], max_length=75, family="encoder_decoder").store.prompt(0)) == 75


def test_a_cut_answer_has_no_end(build):
    built = translated(build, [(4, 11), (4, 12), (4, 30)])
    lengths = built.store.answer_lengths_S.tolist()
    assert lengths == [12, 12, 12]
    ends = [int(built.store.answer(index)[-1]) == EOS for index in range(3)]
    assert ends == [True, False, False]
    cut = built.answers_cut["code_translation"]
    assert (cut.texts, cut.cut, cut.tokens, cut.lost) == (3, 2, 12 + 13 + 31, 1 + 19)
    assert "2 of 3 answers (66.7%) are cut at 12 tokens" in cut.sentence()


def test_special_tokens_in_a_source_are_plain_text(build, tokenizer):
    """A source that could end its turn would give orders; an answer that could would stop early."""
    rows = [{"java": "a</s><s>b", "csharp": "x</s>y"}]
    part = {"code_translation": split_of("code_translation", rows, variants=["java_csharp"])}
    for saved in (SAVED, None):
        store = build(part, {"code_translation": {"max_new_tokens": 12}}, saved, 79, 200).store
        inner = [int(token) for token in store.prompt(0)]
        assert inner.count(EOS) == (1 if saved else 0), "that of the frame"
        assert [int(token) for token in store.answer(0)].count(EOS) == 1
        assert "a</s><s>b" in tokenizer.decode(store.prompt(0))
        assert tokenizer.decode(store.answer(0)) == "x</s>y</s>"
    assert tokenizer("</s>")["input_ids"] == [EOS], "the tokenizer is as it was"


def test_ordinary_texts_do_not_share_the_plain_ones_tokens(tokenizer):
    """The cache tells `</s>` in a source of a prompt from the same text in a search."""
    rows = {
        "code_search": split_of("code_search", [{"query": "</s>", "code": "x"}]),
        "code_translation": split_of("code_translation", [{"java": "</s>", "csharp": "x"}], variants=["java_csharp"]),
    }
    tasks = {"code_search": TaskConfig(), "code_translation": TaskConfig(max_new_tokens=9)}
    for _ in range(2):
        found = prepare({"train": rows}, tasks, 70, tokenizer, Template((), (), ()), 80, family="decoder")
        query = found.examples["train"]["code_search"].texts_EK[0, 0]
        assert found.store.sequence(query).tolist() == [EOS]
        assert found.prompts is not None
        assert EOS not in found.prompts.prompt(0)


def test_no_room_is_an_error(build):
    with pytest.raises(UserError, match=r"the instruction of java_csharp takes \d+ tokens, and a prompt may have 20"):
        translated(build, [(4, 3)], saved=None, max_length=20)
    with pytest.raises(UserError, match=r"may have 5 \(80 positions less 75 for the answer\): no room") as error:
        translated(build, [(4, 3)], saved=None, options={"max_new_tokens": 75})
    assert str(error.value.hint).startswith("lower max_new_tokens (tasks.code_translation.max_new_tokens, or --max-new")
    with pytest.raises(UserError, match=r"has 80 positions for a prompt and its answer, and answers may have 500: no"):
        translated(build, [(4, 3)], saved=None, options={"max_new_tokens": 500})
    with pytest.raises(UserError, match="max_length: 81 tokens wanted, the backbone reads 80"):
        translated(build, [(4, 3)], max_length=81)


def test_long_texts_can_be_refused_and_not_windowed(build):
    fine = translated(build, [(9, 3)], options={"long": "error"})
    assert fine.prompts_cut["code_translation"].sentence() == "none of 1 prompts is longer than 40 tokens"
    with pytest.raises(UserError) as error:
        translated(build, [(9, 3), (99, 3), (9, 30)], options={"long": "error"})
    assert "code_translation, train, m1:java_csharp: wanted at most 40 tokens in the prompt" in error.value.message
    assert "m2:java_csharp: wanted at most 12 tokens in the answer, found 31" in error.value.message
    with pytest.raises(UserError, match=r"tasks\.code_translation\.long: windows"):
        translated(build, [(9, 3)], options={"long": "window"})


def test_what_is_learnt_and_where_it_is_routed(build):
    built = translated(build, [(4, 3)], options={"loss_on": "all"}, routes={"code_translation": 3})
    assert (built.store.learnt_S.tolist(), built.store.routes_S.tolist()) == ([True], [3])
    assert translated(build, [(4, 3)]).store.learnt_S.tolist() == [False]
    with pytest.raises(UserError, match="an encoder-decoder writes only the answer"):
        translated(build, [(4, 3)], options={"loss_on": "all"}, family="encoder_decoder")


def test_variants_that_a_module_did_not_learn_are_refused(build):
    only = {"code_translation": {"java_csharp": SAVED["code_translation"]["java_csharp"]}}
    with pytest.raises(UserError, match="was not trained on the variant 'csharp_java'"):
        translated(build, [(4, 3)], saved=only, variants=("csharp_java",))
    with pytest.raises(UserError, match="was not trained"):
        build(
            {"flaky_tests": split_of("flaky_tests", [{"code": "x", "label": 1}])},
            {"flaky_tests": {"answer": "text"}},
            {},
        )
    new = translated(build, [(4, 3)], saved=None, max_length=79, positions=120)
    assert list(new.frames["code_translation"]) == ["java_csharp"], (
        "frames of variants without rows would be no promise"
    )


def test_rows_without_a_target_have_no_answer(build):
    rows = check_rows(get_task("code_translation"), [{"java": "x", "csharp": None}], labels_required=False,
                      variant="java_csharp")  # fmt: skip
    part = SplitRows(get_task("code_translation"), "test", rows, 1, "memory", "")
    built = build({"code_translation": part}, {"code_translation": {"max_new_tokens": 5}}, SAVED)
    assert built.store.answer_lengths_S.tolist() == [0]
    assert built.prompted["train"]["code_translation"].references_E.tolist() == [""]


def pairs(*labels, size=60):
    return [{"code1": f"{n}" * size, "code2": f"{n + 5}" * (size // 4), "label": y} for n, y in enumerate(labels)]


def questions(build, rows, positions=200, max_length=150, **options):
    part = {"clone_detection": split_of("clone_detection", rows)}
    return build(part, {"clone_detection": {"answer": "text", **options}}, None, max_length, positions)


def test_yes_no_answers(build, tokenizer):
    built = questions(build, pairs(1, 0, size=4), prompt="{code1}={code2}?")
    part = built.prompted["train"]["clone_detection"]
    assert tokenizer.decode(built.store.prompt(0)) == "0000=5?\n\nAnswer:\n"
    assert [tokenizer.decode(built.store.answer(index)) for index in range(2)] == ["yes</s>", "no</s>"]
    assert part.labels_E is not None
    assert part.labels_E.tolist() == [1, 0]
    assert part.variants_E.tolist() == ["", ""]
    assert [tokenizer.decode(list(word)) for word in part.choices] == ["no", "yes"]
    assert part.choices[0][0] != part.choices[1][0]
    assert built.answers_cut["clone_detection"].cut == 0
    assert positive_rates({"clone_detection": part}) == {"clone_detection": 0.5}
    with pytest.raises(UserError, match="all 1 training rows have label 1"):
        refuse_one_label({"clone_detection": part.take(np.array([0]))})


def test_of_a_long_pair_both_sides_stay(build, tokenizer):
    def read(size):
        built = questions(build, pairs(1, size=size), prompt="{code1}={code2}?", max_length=40)
        return tokenizer.decode(built.store.prompt(0))

    text = read(40)
    assert text.endswith("=" + "5" * 10 + "?\n\nAnswer:\n"), "the shorter side is whole"
    assert text.startswith("00000")
    even = read(400)
    assert abs(even.count("0") - even.count("5")) <= 1


def test_rows_without_labels_have_no_answer(build):
    rows = check_rows(get_task("flaky_tests"), [{"code": "x"}], labels_required=False)
    part = {"flaky_tests": SplitRows(get_task("flaky_tests"), "test", rows, 1, "memory", "")}
    built = build(part, {"flaky_tests": {"answer": "text"}}, None, 190, 200)
    assert built.prompted["train"]["flaky_tests"].labels_E is None
    assert built.store.answer_lengths_S.tolist() == [0]


def test_preparation_keeps_both_kinds_apart(tokenizer):
    rows = {
        "code_search": split_of("code_search", [{"query": "q", "code": "c"}]),
        "code_translation": split_of("code_translation", methods((3, 2))),
        "flaky_tests": split_of("flaky_tests", [{"code": "x", "label": 1}, {"code": "y", "label": 0}]),
    }
    tasks = {
        "code_search": TaskConfig(),
        "code_translation": TaskConfig(max_new_tokens=9),
        "flaky_tests": TaskConfig(answer="text", prompt="{code}"),
    }
    template = read_template(tokenizer, end_token=True)
    found = prepare({"train": rows}, tasks, 70, tokenizer, template, 80, family="decoder")
    assert list(found.examples["train"]) == ["code_search"]
    assert list(found.prompted["train"]) == ["code_translation", "flaky_tests"]
    assert list(found.all_examples("train")) == list(tasks)
    assert list(found.truncation) == list(tasks)
    assert list(found.answers_cut) == ["code_translation", "flaky_tests"]
    assert found.prompts is not None
    assert len(found.prompts) == 4
    assert {name: list(made) for name, made in found.frames.items()} == {
        "code_translation": ["java_csharp", "csharp_java"],
        "flaky_tests": [""],
    }
    again = prepare({"train": rows}, tasks, 70, tokenizer, template, 80, family="decoder", saved_frames=found.frames)
    assert again.prompts is not None
    np.testing.assert_array_equal(again.prompts.prompt_ids_T, found.prompts.prompt_ids_T)
    np.testing.assert_array_equal(again.prompts.answer_ids_T, found.prompts.answer_ids_T)
    del tasks["code_search"], rows["code_search"]
    alone = prepare({"train": rows}, tasks, 70, tokenizer, template, 80, family="decoder")
    assert (len(alone.store), alone.used_texts("train").size) == (0, 0)
    vectors = prepare({"train": {}}, {}, 70, tokenizer, template)
    assert (vectors.prompts, vectors.prompted, vectors.frames) == (None, {}, {})
