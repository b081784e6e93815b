"""The command line; `manyskills.cli.app` is its root."""
