"""Which task's examples the next step holds, as configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from manyskills.config.section import Section


class RoundRobinConfig(Section):
    """Equal numbers of examples of every task in each step (the multi-task PEFT study's choice)."""

    name: Literal["round_robin"] = "round_robin"


class ProportionalConfig(Section):
    """Examples in proportion to the number of training rows."""

    name: Literal["proportional"] = "proportional"


class TemperatureConfig(Section):
    """Share of task t proportional to min(n_t, cap)^(1/T) (Raffel et al. 2020, arXiv 1910.10683, section 3.5.2)."""

    name: Literal["temperature"] = "temperature"
    temperature: PositiveFloat = Field(default=2.0, description="1 is proportional, large is equal.")
    cap: PositiveInt | None = Field(default=None, description="Rows of a task that count at most.")


class AlternatingConfig(Section):
    """Whole steps of one task, the tasks in turn."""

    name: Literal["alternating"] = "alternating"
    temperature: PositiveFloat | None = Field(
        default=None, description="A task's share of the steps is as in `temperature`; default: equal shares."
    )
    cap: PositiveInt | None = Field(default=None, description="Rows of a task that count at most; with temperature.")

    @model_validator(mode="after")
    def _cap_counts(self) -> AlternatingConfig:
        if self.cap is not None and self.temperature is None:
            raise ValueError("cap: shares are equal without a temperature, so no rows are counted")
        return self


SamplingConfig = Annotated[
    RoundRobinConfig | ProportionalConfig | TemperatureConfig | AlternatingConfig, Field(discriminator="name")
]
