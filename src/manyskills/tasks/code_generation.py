"""Write the function that a sentence describes (CodeXGLUE NL-to-code, Lu et al. 2021; CodeSearchNet turned round)."""

from manyskills.tasks.base import Kind, Task, Variant

TASK = Task(
    name="code_generation",
    kind=Kind.GENERATE,
    inputs=("nl", "code"),
    label=None,
    primary_metric="bleu",
    description="the function that a sentence asks for",
    variants=(
        Variant("python", "nl", "code", "python", "Write a Python function for this description.\n\n{source}"),
        Variant("java", "nl", "code", "java", "Write a Java method for this description.\n\n{source}"),
    ),
    by_language=True,
    folders=("generation",),
)
