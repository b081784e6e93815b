"""Say in a sentence what a function does (CodeXGLUE code-to-text, Lu et al. 2021)."""

from manyskills.tasks.base import Kind, Task, Variant

TASK = Task(
    name="code_summarization",
    kind=Kind.GENERATE,
    inputs=("code", "summary"),
    label=None,
    primary_metric="bleu",
    description="what a function does, in a sentence",
    variants=(
        Variant("python", "code", "summary", "english", "Summarize this Python function.\n\n{source}"),
        Variant("java", "code", "summary", "english", "Summarize this Java method.\n\n{source}"),
    ),
    by_language=True,
    folders=("summarization",),
)
