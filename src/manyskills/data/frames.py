"""What stands around a text that is read and the answer to it: one object for training, evaluation and use.

A frame is text. It is made once from the task's instruction and the tokenizer's chat template, kept in `tasks.json`,
and used as it stands there by whoever loads the module, whatever the template or the task's file says by then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from manyskills.config import TaskConfig
from manyskills.data.tokens import read_template
from manyskills.data.variants import chosen_variants
from manyskills.errors import UserError, did_you_mean
from manyskills.tasks import Kind, Task, get_task

SOURCE = "source"
_OTHER_TEMPLATE = "choose another backbone, or remove chat_template from its tokenizer"
MARKS = ("5f1c0a9e", "c27e64d8")
"""Stand in for the sources while a chat template is filled in: no template changes letters and digits."""

PLAIN_ANSWER = "\n\nAnswer:\n"
"""Ends a prompt where there is no chat template, so that an answer cannot be taken for more of the source."""

TEMPLATE_VARIABLES = {"enable_thinking": False, "date_string": "1 January 2025"}
"""For chat templates that know them: answers come at once, and the same run makes the same prompts on any day."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The texts around a source and its answer: `before source after answer end`.

    Attributes:
        before: Stands before the source, with the tokenizer's first special tokens.
        after: Stands between the source and the answer.
        end: Stands behind an answer that is complete.
        middle: Stands between the two sources of a pair.
    """

    before: str
    after: str
    end: str
    middle: str = ""

    def to_list(self) -> list[str]:
        """As `tasks.json` keeps it: before, after, end and, of a pair, middle."""
        return [self.before, self.after, self.end, *([self.middle] if self.middle else [])]

    @classmethod
    def from_list(cls, texts: Any) -> Frame:
        """What `to_list` made.

        Raises:
            ValueError: It is no such list.
        """
        if not isinstance(texts, list) or len(texts) not in (3, 4) or not all(isinstance(t, str) for t in texts):
            raise ValueError("prompts: wanted three or four texts for each variant")
        return cls(*texts)


Frames = dict[str, dict[str, Frame]]
"""By task and variant; the variant of a yes/no task is the empty name."""


def written(name: str, config: TaskConfig) -> bool:
    """Whether a task's answers are texts that the language model writes, not what a head makes of a vector."""
    return config.answer == "text" or get_task(name).kind is Kind.GENERATE


def frames(
    task: Task, config: TaskConfig, tokenizer: Any, family: str, saved: Mapping[str, Frame] | None = None
) -> dict[str, Frame]:
    """The frame of each variant of a task whose answers are written.

    Args:
        task: Whose.
        config: Its choices: variants and prompt.
        tokenizer: Of the backbone; a decoder's chat template is used where it has one.
        family: Of the backbone; an encoder-decoder reads the instruction and needs no mark before the answer.
        saved: The frames that a module was trained with; they are used as they are.

    Raises:
        UserError: The task's answer cannot be a text, an instruction does not hold each source once, or the tokenizer
            has no end token.
    """
    if saved is not None:
        return dict(saved)
    end = tokenizer.eos_token or tokenizer.sep_token
    if end is None:
        raise UserError("the backbone's tokenizer has no end token, so no answer could end", "choose another backbone")
    return {name: _frame(pieces, tokenizer, family, end) for name, pieces in _instructions(task, config).items()}


def refuse_unknown_variant(task: str, wanted: str, known: Mapping[str, Frame]) -> None:
    """A variant that a module has no frame for is one that it never learnt.

    Raises:
        UserError: It has none.
    """
    if wanted not in known:
        raise UserError(f"{task}: this module was not trained on the variant {wanted!r}", did_you_mean(wanted, known))


def _instructions(task: Task, config: TaskConfig) -> dict[str, list[str]]:
    """By variant, the instruction cut at its sources: as many sources as pieces but one."""
    if task.kind is Kind.GENERATE:
        own = _own_prompts(task, config)
        key = f"tasks.{task.name}.prompt"
        return {v.name: _cut(own.get(v.name, v.prompt), (SOURCE,), key) for v in chosen_variants(task, config.variants)}
    if not task.question:
        what = f"tasks.{task.name}.answer: {task.name} has no question that yes or no would answer"
        raise UserError(what, "set answer=head")
    if isinstance(config.prompt, dict):
        raise UserError(f"tasks.{task.name}.prompt: a yes/no task has no variants", "give one text")
    columns = task.inputs
    question = config.prompt or task.question
    if len(columns) == 1:
        question = question.replace(f"{{{SOURCE}}}", f"{{{columns[0]}}}")
    return {"": _cut(question, columns, f"tasks.{task.name}.prompt")}


def _own_prompts(task: Task, config: TaskConfig) -> dict[str, str]:
    """Instructions of the configuration, by variant."""
    names = [variant.name for variant in task.variants]
    if config.prompt is None:
        return {}
    if isinstance(config.prompt, str):
        return dict.fromkeys(names, config.prompt)
    for name in config.prompt:
        if name not in names:
            raise UserError(f"tasks.{task.name}.prompt: unknown variant {name!r}", did_you_mean(name, names))
    return config.prompt


def _cut(instruction: str, columns: Sequence[str], key: str) -> list[str]:
    """The instruction without its placeholders. Other braces are text: instructions may hold code.

    Raises:
        UserError: A placeholder is missing, or there twice, or they are in another order than the columns.
    """
    holders = [f"{{{name}}}" for name in columns]
    found = re.findall("|".join(map(re.escape, holders)), instruction)
    if found != holders:
        wanted = f"wanted {' and '.join(holders)} once{', in this order' if len(holders) > 1 else ''}"
        raise UserError(f"{key}: {wanted}, found {', '.join(found) or 'none'}", "the text to read is put there")
    return re.split("|".join(map(re.escape, holders)), instruction)


def _frame(pieces: Sequence[str], tokenizer: Any, family: str, end: str) -> Frame:
    if family == "decoder" and getattr(tokenizer, "chat_template", None):
        before, *middle, after = _in_chat(pieces, tokenizer)
    else:
        prefix, suffix = _special_texts(tokenizer)
        first, *middle, last = pieces
        before, after = prefix + first, last + (PLAIN_ANSWER if family == "decoder" else suffix)
    return Frame(before, after, end, "".join(middle))


def _in_chat(pieces: Sequence[str], tokenizer: Any) -> list[str]:
    """The pieces of a conversation whose only message is the instruction, up to where the answer begins."""
    marks = MARKS[: len(pieces) - 1]
    content = pieces[0] + "".join(mark + piece for mark, piece in zip(marks, pieces[1:], strict=True))
    message = [{"role": "user", "content": content}]
    try:
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, **TEMPLATE_VARIABLES)
    except (TemplateError, ValueError) as error:
        what = f"the backbone's chat template cannot be filled in: {str(error).splitlines()[0]}"
        raise UserError(what, _OTHER_TEMPLATE) from error
    found = re.split("|".join(marks), text)
    if len(found) != len(pieces):
        what = "the backbone's chat template does not keep a message as it is"
        raise UserError(what, _OTHER_TEMPLATE)
    return found


def _special_texts(tokenizer: Any) -> tuple[str, str]:
    """What the tokenizer itself puts before and behind one text."""
    template = read_template(tokenizer, end_token=False)
    before, behind = (tokenizer.convert_ids_to_tokens(list(ids)) for ids in (template.prefix, template.suffix))
    return "".join(before), "".join(behind)
