"""What a grouping study found, and how it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Predicted:
    """A subset of the tasks and the loss that each of them is predicted to end with."""

    tasks: tuple[str, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Verified:
    """A partition of the tasks.

    Attributes:
        groups: Names.
        predicted: Mean over tasks of the predicted loss, that of all tasks together being 1.
        real: The same after training; None if it was not trained.
        metric: Mean primary validation metric after the last step; None if it was not trained.
    """

    groups: tuple[tuple[str, ...], ...]
    predicted: float
    real: float | None
    metric: float | None


@dataclass(frozen=True, slots=True)
class GroupingCost:
    """What the prediction cost, and what training would have.

    Attributes:
        steps: Steps of all tasks together: the joint run's, and its measurements as so many of them.
        all_subsets: Those of training every subset whole.
        tokens: That the joint run's own steps read.
        seconds: That they took, measurements included.
    """

    steps: float
    all_subsets: float
    tokens: int
    seconds: float

    @property
    def share(self) -> float:
        """Of training every subset."""
        return self.steps / self.all_subsets


@dataclass(frozen=True, slots=True)
class Grouping:
    """What the study found.

    Attributes:
        tasks: Names, in the order of the matrices.
        steps: At which the joint run was measured.
        cosines: Mean cosine of two tasks' gradients.
        transfer: Row k, column j: the share of task j's loss that a step of task k takes away, to first order; median.
        lookahead: The same, tried out; None if it was not.
        predicted: Losses of every subset.
        partitions: The best one for every number of groups, one group first.
        advised: The fewest groups within the tolerance of the best.
        cost: Of the prediction.
        verified: Partitions that were trained.
    """

    tasks: tuple[str, ...]
    steps: tuple[int, ...]
    cosines: list[list[float]]
    transfer: list[list[float]]
    lookahead: list[list[float]] | None
    predicted: tuple[Predicted, ...]
    partitions: tuple[Verified, ...]
    advised: Verified
    cost: GroupingCost
    verified: tuple[Verified, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"cost": asdict(self.cost) | {"share": self.cost.share}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Grouping:
        """The inverse of `to_dict`."""
        cost = {key: value for key, value in data["cost"].items() if key != "share"}
        return cls(
            tasks=tuple(data["tasks"]),
            steps=tuple(data["steps"]),
            cosines=data["cosines"],
            transfer=data["transfer"],
            lookahead=data["lookahead"],
            predicted=tuple(Predicted(tuple(p["tasks"]), tuple(p["losses"])) for p in data["predicted"]),
            partitions=tuple(_partition(one) for one in data["partitions"]),
            advised=_partition(data["advised"]),
            cost=GroupingCost(**cost),
            verified=tuple(_partition(one) for one in data["verified"]),
        )

    def loss_alone(self, task: str) -> float:
        """The predicted loss of a task that is trained alone."""
        return next(one.losses[0] for one in self.predicted if one.tasks == (task,))

    def relative_alone(self) -> float:
        """Mean over tasks of the predicted loss alone, that of all tasks together being 1."""
        together = self.predicted[-1]
        ratios = [self.loss_alone(task) / loss for task, loss in zip(together.tasks, together.losses, strict=True)]
        return sum(ratios) / len(ratios)


def _partition(data: Mapping[str, Any]) -> Verified:
    groups = tuple(tuple(group) for group in data["groups"])
    return Verified(groups, data["predicted"], data["real"], data["metric"])


def group_names(groups: Sequence[Sequence[str]]) -> str:
    """For people: tasks of a group joined by +, groups set apart."""
    return "  |  ".join(" + ".join(group) for group in groups)


def print_grouping(found: Grouping, console: Console) -> None:
    """Matrices, partitions and cost on a terminal."""
    console.print(_matrix(found, found.cosines, "Gradient cosine, mean over measured steps", "{:+.3f}"))
    transfer = "Transfer: share of the column's loss that a step of the row's task takes away, to first order"
    console.print(_matrix(found, found.transfer, transfer, "{:+.3%}"))
    if found.lookahead is not None:
        console.print(_matrix(found, found.lookahead, "Lookahead affinity: the same, tried out", "{:+.3%}"))
    console.print(_partitions(found))
    console.print(f"advised: {group_names(found.advised.groups)}", highlight=False, soft_wrap=True)
    cost = found.cost
    console.print(
        f"cost: {cost.steps:.0f} steps, {cost.share:.1%} of the {cost.all_subsets:.0f} of training every subset",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    if found.verified:
        console.print(_verified(found))


def _matrix(found: Grouping, values: Sequence[Sequence[float]], title: str, form: str) -> Table:
    """Columns have the numbers of the rows: task names are long."""
    table = _table(title, ["", *(str(number) for number in range(1, len(found.tasks) + 1))])
    for number, (task, row) in enumerate(zip(found.tasks, values, strict=True), start=1):
        table.add_row(f"{number} {task}", *(form.format(value) for value in row))
    return table


def _partitions(found: Grouping) -> Table:
    """Gains in loss: positive is better."""
    title = "Best partition for every number of groups, gain in loss as predicted at the joint run's length"
    table = _table(title, ["groups", "tasks", "over all together", "over each alone"])
    alone = found.relative_alone()
    for one in found.partitions:
        table.add_row(str(len(one.groups)), group_names(one.groups), f"{1 - one.predicted:+.2%}",
                      f"{1 - one.predicted / alone:+.2%}")  # fmt: skip
    return table


def _verified(found: Grouping) -> Table:
    title = "Trained whole: gain in loss over all together, and mean validation metric, after the last step"
    table = _table(title, ["tasks", "predicted", "real", "metric"])
    for one in found.verified:
        assert one.real is not None
        table.add_row(group_names(one.groups), f"{1 - one.predicted:+.2%}", f"{1 - one.real:+.2%}", f"{one.metric:.4f}")
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        left = column == "tasks" or (number == 0 and column != "groups")
        table.add_column(column, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    return table
