"""Write a function in another language (CodeXGLUE Java and C#, Lu et al. 2021)."""

from manyskills.tasks.base import Kind, Task, Variant

TASK = Task(
    name="code_translation",
    kind=Kind.GENERATE,
    inputs=("java", "csharp"),
    label=None,
    primary_metric="bleu",
    description="the same method in the other language",
    variants=(
        Variant("java_csharp", "java", "csharp", "csharp", "Translate this Java method to C#.\n\n{source}"),
        Variant("csharp_java", "csharp", "java", "java", "Translate this C# method to Java.\n\n{source}"),
    ),
    folders=("translation",),
)
