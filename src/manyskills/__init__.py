"""manyskills: one parameter-efficient module for many code tasks."""

__version__ = "0.1.0"
