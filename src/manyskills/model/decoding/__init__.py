"""The parts of writing answers token by token; `manyskills.model.generation` puts them together."""
