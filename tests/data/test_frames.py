"""What stands around a source: chat template or plain, every placeholder once, and kept as it was."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from manyskills.config import TaskConfig
from manyskills.data.frames import Frame, frames, refuse_unknown_variant, written
from manyskills.errors import UserError
from manyskills.tasks import all_tasks, get_task

TRANSLATION, CLONES = get_task("code_translation"), get_task("clone_detection")
CHAT = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|stop|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% if enable_thinking is false %}<calm>{% endif %}{% endif %}"
)


@pytest.fixture
def tokenizer_of(backbone_folder):
    def load(family, chat=False):
        tokenizer = AutoTokenizer.from_pretrained(backbone_folder(family))
        if chat:
            tokenizer.chat_template = CHAT
        return tokenizer

    return load


def test_a_decoder_without_chat_template_marks_the_answer(tokenizer_of):
    found = frames(TRANSLATION, TaskConfig(), tokenizer_of("qwen2"), "decoder")
    assert list(found) == ["java_csharp", "csharp_java"]
    assert found["java_csharp"] == Frame("Translate this Java method to C#.\n\n", "\n\nAnswer:\n", "</s>")


def test_a_chat_template_is_used_where_there_is_one(tokenizer_of):
    (frame,) = frames(
        TRANSLATION, TaskConfig(variants=["java_csharp"]), tokenizer_of("qwen2", True), "decoder"
    ).values()
    assert frame.before == "<|start|>user\nTranslate this Java method to C#.\n\n"
    assert frame.after == "<|stop|>\n<|start|>assistant\n<calm>"
    assert frame.end == "</s>"


def test_an_encoder_decoder_reads_the_instruction_and_its_own_end(tokenizer_of):
    frame = frames(TRANSLATION, TaskConfig(), tokenizer_of("t5", True), "encoder_decoder")["csharp_java"]
    assert frame == Frame("Translate this C# method to Java.\n\n", "</s>", "</s>")


def test_the_tokenizers_first_token_stands_first(tokenizer_of):
    frame = frames(TRANSLATION, TaskConfig(), tokenizer_of("roberta"), "decoder")["csharp_java"]
    assert frame.before == "<s>Translate this C# method to Java.\n\n"


def test_a_pair_has_a_middle(tokenizer_of):
    task = TaskConfig(answer="text")
    for chat in (False, True):
        (frame,) = frames(CLONES, task, tokenizer_of("qwen2", chat), "decoder").values()
        assert frame.before.endswith("First function:\n")
        assert frame.middle == "\n\nSecond function:\n"
        assert Frame.from_list(frame.to_list()) == frame
    with pytest.raises(UserError, match=r"prompt: wanted \{code1\} and \{code2\} once, in this order, found \{code2\}"):
        frames(CLONES, TaskConfig(answer="text", prompt="{code2} or {code1}"), tokenizer_of("qwen2"), "decoder")


def test_instructions_of_the_configuration(tokenizer_of):
    tokenizer = tokenizer_of("qwen2")

    def made(prompt, task=TRANSLATION, **more):
        return frames(task, TaskConfig(prompt=prompt, **more), tokenizer, "decoder")

    braces = "void f() { return {}; } {0} {{x}}\n{source}\n{end}"
    assert made(braces)["java_csharp"].before == "void f() { return {}; } {0} {{x}}\n"
    assert made(braces)["csharp_java"].after == "\n{end}\n\nAnswer:\n"
    one = made({"csharp_java": "To Java: {source}"})
    assert one["csharp_java"].before == "To Java: "
    assert one["java_csharp"].before.startswith("Translate this Java")
    for wrong, found in (("no place", "none"), ("{source}{source}", "{source}, {source}"), ("{sauce}", "none")):
        with pytest.raises(UserError) as error:
            made(wrong)
        assert error.value.message == f"tasks.code_translation.prompt: wanted {{source}} once, found {found}"
    with pytest.raises(UserError, match="unknown variant 'csharp'"):
        made({"csharp": "{source}"})
    question = made("Flaky? {source}", get_task("flaky_tests"), answer="text")
    assert question == made("Flaky? {code}", get_task("flaky_tests"), answer="text")
    with pytest.raises(UserError, match="has no variants"):
        made({"": "{source}"}, get_task("flaky_tests"), answer="text")


def test_saved_frames_win(tokenizer_of):
    saved = {"java_csharp": Frame("a", "b", "c")}
    assert frames(TRANSLATION, TaskConfig(prompt="other"), tokenizer_of("qwen2", True), "decoder", saved) == saved
    refuse_unknown_variant("code_translation", "java_csharp", saved)
    with pytest.raises(UserError, match="was not trained on the variant 'csharp_java'"):
        refuse_unknown_variant("code_translation", "csharp_java", saved)
    for broken in (["a"], "abc", ["a", "b", 3], None):
        with pytest.raises(ValueError, match="three or four texts"):
            Frame.from_list(broken)


def test_what_cannot_be_framed(tokenizer_of):
    with pytest.raises(UserError, match="code_search has no question"):
        frames(get_task("code_search"), TaskConfig(answer="text"), tokenizer_of("qwen2"), "decoder")
    mute = tokenizer_of("qwen2")
    mute.eos_token = None
    with pytest.raises(UserError, match="has no end token"):
        frames(TRANSLATION, TaskConfig(), mute, "decoder")
    loud = tokenizer_of("qwen2")
    loud.chat_template = "{{ messages[0]['content'] }} {{ messages[0]['content'] }}"
    with pytest.raises(UserError, match="does not keep a message as it is"):
        frames(TRANSLATION, TaskConfig(), loud, "decoder")


def test_written_and_questions():
    assert written("code_translation", TaskConfig())
    assert written("flaky_tests", TaskConfig(answer="text"))
    assert not written("flaky_tests", TaskConfig())
    for task in all_tasks().values():
        if task.label:
            assert all(task.question.count(f"{{{name}}}") == 1 for name in task.inputs)
