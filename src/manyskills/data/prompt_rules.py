"""How one task's rows become prompts and answers: frames as ids, limits, and the words for yes and no."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from manyskills.config import TaskConfig
from manyskills.data.frames import Frame
from manyskills.data.long_texts import length_limit
from manyskills.errors import UserError
from manyskills.tasks import Kind, get_task

WORDS = ("no", "yes")
"""What is written for the labels 0 and 1."""


@dataclass(frozen=True, slots=True)
class PromptReader:
    """What decides the tokens of prompts besides the tasks' own choices.

    Attributes:
        tokenizer: A fast tokenizer.
        family: Of the backbone.
        max_length: Tokens of a prompt, for tasks without their own.
        max_positions: What the backbone can take at most; a decoder's hold prompt and answer.
        routes: By task, which part of a routed module reads its prompts; None: nothing is routed.
    """

    tokenizer: Any
    family: str
    max_length: int
    max_positions: int | None = None
    routes: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class FrameIds:
    """A frame as token ids."""

    before: tuple[int, ...]
    middle: tuple[int, ...]
    after: tuple[int, ...]
    end: tuple[int, ...]

    @classmethod
    def of(cls, frame: Frame, tokenizer: Any) -> FrameIds:
        """The ids of a frame; special tokens in it are special."""
        texts = (frame.before, frame.middle, frame.after, frame.end)
        return cls(*(tuple(tokenizer.backend_tokenizer.encode(t, add_special_tokens=False).ids) for t in texts))

    @property
    def length(self) -> int:
        """Tokens that it takes of a prompt."""
        return len(self.before) + len(self.middle) + len(self.after)


@dataclass(frozen=True, slots=True)
class PromptRule:
    """How one task's rows become prompts and answers.

    Attributes:
        limit: Tokens of a prompt at most, its frame included.
        answer_limit: Tokens of an answer at most, its end included.
        strict: Longer ones are refused instead of cut.
        learnt: Prompts are learnt as well.
        route: Which part of a routed module reads them.
        ids: The frame of each variant.
        choices: Of a yes/no task, the words for 0 and 1.
    """

    limit: int
    answer_limit: int
    strict: bool
    learnt: bool
    route: int
    ids: dict[str, FrameIds]
    choices: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, name: str, config: TaskConfig, by_variant: Mapping[str, Frame], reader: PromptReader) -> PromptRule:
        """The rule of a task.

        Raises:
            UserError: A limit leaves no room for a source, or choices exclude each other.
        """
        if config.long == "window":
            what = f"tasks.{name}.long: windows are averaged as vectors, and an answer is written to one text"
            raise UserError(what, f"set tasks.{name}.long to truncate or error")
        if config.loss_on == "all" and reader.family == "encoder_decoder":
            what = (
                f"tasks.{name}.loss_on: an encoder-decoder writes only the answer, and cannot learn the prompt's tokens"
            )
            raise UserError(what, f"leave tasks.{name}.loss_on out")
        ids = {variant: FrameIds.of(frame, reader.tokenizer) for variant, frame in by_variant.items()}
        yes_or_no = get_task(name).kind is not Kind.GENERATE
        choices = _choices(ids[""].end, reader.tokenizer) if yes_or_no else ()
        answer_limit = max(map(len, choices)) + len(ids[""].end) if yes_or_no else config.max_new_tokens
        limit = length_limit(name, config, reader.max_length, reader.max_positions)
        if reader.max_positions is not None and reader.family == "decoder":
            limit = min(limit, reader.max_positions - answer_limit)
        for variant, frame in ids.items():
            _refuse_no_room(name, variant, frame, limit, answer_limit, reader)
        route = (reader.routes or {}).get(name, 0)
        return cls(limit, answer_limit, config.long == "error", config.loss_on == "all", route, ids, choices)

    def room(self, variant: str) -> int:
        """Tokens of a prompt that are left for its source."""
        return self.limit - self.ids[variant].length


def _refuse_no_room(
    name: str, variant: str, frame: FrameIds, limit: int, answer_limit: int, reader: PromptReader
) -> None:
    """A frame is never cut, so there must be room for a text within it."""
    if frame.length < limit:
        return
    which = f" of {variant}" if variant else ""
    positions = reader.max_positions
    bounded = positions is not None and limit == positions - answer_limit
    if bounded and limit <= 0:
        what = (
            f"the backbone has {positions} positions for a prompt and its answer, and answers may have {answer_limit}"
        )
    else:
        kept = f" ({positions} positions less {answer_limit} for the answer)" if bounded else ""
        what = f"the instruction{which} takes {frame.length} tokens, and a prompt may have {limit}{kept}"
    longer = "raise max_length where the backbone allows it"
    if bounded and get_task(name).kind is Kind.GENERATE:
        longer = f"lower max_new_tokens (tasks.{name}.max_new_tokens, or --max-new-tokens of generate)"
    raise UserError(
        f"tasks.{name}: {what}: no room for the text to read", f"{longer}, or set a shorter tasks.{name}.prompt"
    )


def _choices(end: tuple[int, ...], tokenizer: Any) -> tuple[tuple[int, ...], ...]:
    """The words for 0 and 1 as token ids; with the end token where one word is the beginning of the other."""
    no, yes = (tuple(tokenizer.backend_tokenizer.encode(word, add_special_tokens=False).ids) for word in WORDS)
    if not no or not yes or no == yes:
        raise UserError("the backbone's tokenizer cannot tell the words yes and no apart", "set answer=head")
    shorter = min(len(no), len(yes))
    return (no + end, yes + end) if no[:shorter] == yes[:shorter] else (no, yes)
