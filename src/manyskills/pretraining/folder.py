"""The folder of a backbone in the making: what is where, and writing it so that a kill at any instant loses nothing.

While it trains there are `config.yaml`, `metrics.jsonl`, `tokenizer/` and `last/` (the newest state). When it is done
the files of the backbone take their place; `pretraining.json` is written last and says that the folder is complete.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_model, save_model

from manyskills.config.file import dump_config
from manyskills.config.pretraining import PretrainConfig
from manyskills.errors import UserError
from manyskills.files import recover_folder, remove_stale, replace_folder_atomically, write_atomically
from manyskills.pretraining.optimizer import Optimizer

WORKING = frozenset({"config.yaml", "metrics.jsonl", "tokenizer", "last"})
BACKBONE = frozenset({
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "chat_template.jinja", "README.md", "pretraining.json",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class State:
    """Where a run is; with the weights and the optimiser's moments it is all there is.

    Attributes:
        step: Updates done.
        tokens: Tokens predicted in them.
        seconds: Time that they took.
        digest: Of the texts.
    """

    step: int
    tokens: int
    seconds: float
    digest: str


class BackboneFolder:
    """A backbone on disk.

    Args:
        path: The configuration's output_dir.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.last, self.tokenizer = self.path / "last", self.path / "tokenizer"
        self.config_file, self.metrics_file = self.path / "config.yaml", self.path / "metrics.jsonl"
        self.summary_file = self.path / "pretraining.json"

    @property
    def finished(self) -> bool:
        """Whether the backbone is complete."""
        return self.summary_file.is_file()

    def check(self, config: PretrainConfig, *, resume: bool, overwrite: bool) -> None:
        """Whether `open` will work, without writing anything: said before data are read.

        Raises:
            UserError: There is something that may not be overwritten, or that is of another configuration.
        """
        self.check_is_folder()
        if resume and overwrite:
            raise UserError("--resume and --overwrite contradict each other", "give one of them")
        there = sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []
        if not there:
            return
        if not (resume or overwrite):
            state = "a finished backbone" if self.finished else "files already"
            hint = "--resume continues it, --overwrite starts anew, output_dir=... goes elsewhere"
            raise UserError(f"output_dir {self.path} holds {state}", hint)
        foreign = [name for name in there if not _is_ours(name)]
        if foreign or not self.config_file.is_file():
            why = ", ".join(foreign[:5]) or "config.yaml is missing"
            raise UserError(f"output_dir {self.path} was not made by pretrain: {why}", "choose another output_dir")
        if resume:
            self._refuse_changes(config)

    def check_is_folder(self) -> None:
        """Make sure that no file is in the way.

        Raises:
            UserError: There is one.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"output_dir {self.path} is a file", "choose another output_dir")

    def open(self, config: PretrainConfig, *, overwrite: bool) -> None:
        """Make the folder ready for a new or a continued run, after `check`."""
        if self.path.is_dir():
            remove_stale(self.path)
            recover_folder(self.last)
            recover_folder(self.tokenizer)
            if overwrite:
                self._clear()
        write_atomically(self.config_file, dump_config(config))

    def _refuse_changes(self, config: PretrainConfig) -> None:
        before = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
        now = config.model_dump(mode="json")
        changed = [key for key in now if key != "output_dir" and now[key] != before.get(key)]
        if changed:
            what = f"{self.path} was started with other values of {', '.join(changed)}"
            raise UserError(what, "resume with the same configuration, or start anew with --overwrite")

    def _clear(self) -> None:
        # first what says that it is complete, last what says that it is ours: a kill leaves no ruin
        self.summary_file.unlink(missing_ok=True)
        for path in self.path.iterdir():
            if path != self.config_file:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)

    def save_tokenizer(self, tokenizer: Any) -> None:
        """Keep the tokenizer for a continued run."""
        replace_folder_atomically(lambda folder: tokenizer.save_pretrained(folder), self.tokenizer)

    def save_state(self, network: Any, optimizer: Optimizer, state: State) -> None:
        """Replace the state that a continued run begins with."""

        def build(folder: Path) -> None:
            save_model(network, str(folder / "model.safetensors"))
            optimizer.save(folder / "optimizer.safetensors")
            (folder / "state.json").write_text(json.dumps(asdict(state)) + "\n", encoding="utf-8")

        replace_folder_atomically(build, self.last)

    def load_state(self, network: Any, optimizer: Optimizer, digest: str) -> State | None:
        """Continue from the newest state, if there is one.

        Raises:
            UserError: The state was made from other texts.
        """
        if not self.last.is_dir():
            return None
        state = State(**json.loads((self.last / "state.json").read_text(encoding="utf-8")))
        if state.digest != digest:
            hint = "restore the data it was started with, or start anew with --overwrite"
            raise UserError(f"{self.path}: the data is not what the run was started with", hint)
        load_model(network, str(self.last / "model.safetensors"))
        optimizer.load(self.last / "optimizer.safetensors")
        return state

    def append(self, record: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def records(self, until: int | None = None) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; with `until`, later steps and what a kill cut short are removed from the file."""
        lines = self.metrics_file.read_bytes().split(b"\n") if self.metrics_file.is_file() else []
        found = [json.loads(line) for line in lines if line.endswith(b"}")]
        if until is not None:
            found = [record for record in found if record["step"] <= until]
            write_atomically(self.metrics_file, "".join(json.dumps(record) + "\n" for record in found))
        return found

    def finish(self, files: Path, summary: dict[str, Any]) -> None:
        """Put the files of the backbone into place and remove what only the training needed."""
        for file in sorted(files.iterdir()):
            write_atomically(self.path / file.name, file.read_bytes())
        write_atomically(self.summary_file, json.dumps(summary, indent=2) + "\n")
        self.remove_working()

    def remove_working(self) -> None:
        """Remove the state and the copy of the tokenizer."""
        shutil.rmtree(self.last, ignore_errors=True)
        shutil.rmtree(self.tokenizer, ignore_errors=True)


def _is_ours(name: str) -> bool:
    return name.removesuffix(".old").partition(".tmp-")[0] in WORKING | BACKBONE
