"""Uploading to the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path

from manyskills.errors import UserError, require_library
from manyskills.saved import TASKS_FILE


def _without_paths(tasks_file: Path) -> bytes:
    """The tasks without where data and run lay: that is nobody's business, and leads nowhere elsewhere."""
    content = json.loads(tasks_file.read_text(encoding="utf-8"))
    content["config"] |= {"data_dir": "data", "output_dir": "runs/run"}
    for task in content["config"]["tasks"].values():
        if task["data"] and Path(task["data"]).is_absolute():
            task["data"] = None
    return (json.dumps(content, indent=2) + "\n").encode()


def upload(folder: Path, repo_id: str, *, private: bool) -> str:
    """Upload a saved module, with the model card of its run folder if that is the parent.

    Args:
        folder: Holds adapter, heads and tasks.
        repo_id: organisation/name.
        private: Whether a new repository is private.

    Returns:
        The address of the repository.

    Raises:
        UserError: The hub refused or cannot be reached, or `huggingface_hub` is not installed.
    """
    require_library("huggingface_hub", f"{repo_id}: uploading to the hub")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    api = HfApi(library_name="manyskills")
    card = folder.parent / "README.md"
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        message = "Upload the trained module"
        api.upload_folder(repo_id=repo_id, folder_path=folder, ignore_patterns=[TASKS_FILE], commit_message=message)
        api.upload_file(repo_id=repo_id, path_or_fileobj=_without_paths(folder / TASKS_FILE), path_in_repo=TASKS_FILE)
        if folder.name == "best" and card.is_file():  # a run's card, not that of whatever is around the folder
            api.upload_file(repo_id=repo_id, path_or_fileobj=card, path_in_repo="README.md")
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = "log in with `hf auth login`, check the name (organisation/name) and the network"
        raise UserError(f"{repo_id} cannot be uploaded: {first_line}", hint) from error
    return str(address)
