"""A plan as text for people."""

from __future__ import annotations

from manyskills.training.memory import Memory, Place
from manyskills.training.plan import Plan


def plan_text(plan: Plan) -> str:
    """Everything a plan says, in lines of 100 characters or so."""
    lines = [
        f"{plan.steps:,} steps, a validation every {plan.eval_steps}",
        f"{plan.tokens_a_step:,.0f} tokens a step ({plan.padded_tokens_a_step / plan.tokens_a_step - 1:.1%} padding), "
        f"{plan.tokens:,} in the run; {plan.tokens_to_validate:,} in each validation",
        *_method_lines(plan),
        *(_memory_line(how, memory, plan.place, how == plan.step_memory) for how, memory in plan.memory.items()),
        *_lower_lines(plan),
    ]
    for name, task in plan.tasks.items():
        rows = " / ".join(f"{count:,}" for count in task.rows.values())
        synthetic = "; synthetic labels" if task.synthetic else ""
        lines += [
            f"{name}{synthetic}",
            f"  rows: {rows} (train / valid / test); a step holds {task.rows_a_step:.1f} of them, "
            f"{task.texts_a_step:.1f} texts",
            f"  {task.truncation.sentence()}",
        ]
        if task.answers_cut is not None:
            lines.append(f"  answers: {task.answers_cut.sentence()}")
    return "\n".join(lines)


def _method_lines(plan: Plan) -> list[str]:
    method = plan.method
    changed = f", {method.changed} modules changed" if method.changed else ""
    return [
        f"{method.name}: {method.where}{changed}; the tasks share {method.shared}",
        f"{method.trainable:,} parameters train in the shared module ({method.share:.2%} of all; "
        f"{size(method.storage)} on disk) on a backbone of {method.backbone:,}, {plan.trainable_heads:,} in the heads",
    ]


def _lower_lines(plan: Plan) -> list[str]:
    lower = plan.lower_layers
    if lower is None:
        return []
    once = f"the lower {lower.count} layers run once for each text ({lower.tokens:,} different tokens)"
    return [f"{once}; its states take {size(lower.disk)} on disk"]


def _memory_line(how: str, memory: Memory, place: Place, chosen: bool) -> str:
    parts = f"weights {size(memory.weights)}, training {size(memory.training)}, activations {size(memory.activations)}"
    if memory.task_gradients:
        parts += f", the tasks' gradients {size(memory.task_gradients)}"
    if memory.answers:
        parts += f", answers {size(memory.answers)}"
    mark = " (chosen)" if chosen else ""
    where = f"on a {'GPU' if place.device == 'cuda' else 'CPU'}, products in {'bfloat16' if place.bf16 else 'float32'}"
    return f"about {size(memory.total)} of memory {where}, with step_memory={how}{mark}: {parts}"


def size(count: int) -> str:
    """A number of bytes for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.1f} {unit}" if value < 10 and unit != "B" else f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
