"""A plan as text for people."""

from __future__ import annotations

from manyskills.training.plan import Memory, Plan


def plan_text(plan: Plan) -> str:
    """Everything a plan says, in lines of 100 characters or so."""
    lines = [
        f"{plan.steps:,} steps, a validation every {plan.eval_steps}",
        f"{plan.tokens_a_step:,.0f} tokens a step ({plan.padded_tokens_a_step / plan.tokens_a_step - 1:.1%} padding), "
        f"{plan.tokens:,} in the run; {plan.tokens_to_validate:,} in each validation",
        f"{plan.trainable_shared:,} parameters train in the shared module "
        f"({plan.trainable_shared / plan.backbone_parameters:.2%} of {plan.backbone_parameters:,}), "
        f"{plan.trainable_heads:,} in the heads",
        *(_memory_line(how, memory, how == plan.step_memory) for how, memory in plan.memory.items()),
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
    return "\n".join(lines)


def _memory_line(how: str, memory: Memory, chosen: bool) -> str:
    parts = (
        f"weights {_size(memory.weights)}, training {_size(memory.training)}, activations {_size(memory.activations)}"
    )
    mark = " (chosen)" if chosen else ""
    return f"about {_size(memory.total)} of memory with step_memory={how}{mark}: {parts}"


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
