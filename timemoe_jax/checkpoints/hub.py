"""Published models by their names on the Hugging Face hub, such as "Maple728/TimeMoE-50M".

What lies in the hub's cache is found without a network and without the hub's package; `download`
fetches with it.
"""

import hashlib
import os
import re
from pathlib import Path

from timemoe_jax.errors import CheckpointError

FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_name(text: str) -> bool:
    """Whether a text can be the name of a model on the hub: OWNER/NAME."""
    return _NAME.fullmatch(text) is not None and not text.startswith(".")


def find(name: str) -> Path | None:
    """The folder of a model in the hub's cache; None where it is not there."""
    folder = cache_folder() / f"models--{name.replace('/', '--')}"
    try:
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if (snapshot / "config.json").exists() else None


def cache_folder() -> Path:
    """Where the hub's package keeps what it fetches, by the same variables of the environment."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return Path(home).expanduser() / "hub"


def download(name: str) -> Path:
    """Fetches the weights and the config of a model into the hub's cache, and checks their SHA-256.

    Raises:
      CheckpointError: the hub's package is not installed, the model cannot be fetched, or a file is
        not the one that the hub has.
    """
    if not is_name(name):
        raise CheckpointError(f"{name!r} is no name of the hub; give OWNER/NAME")
    try:
        import huggingface_hub  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise CheckpointError(
            "huggingface_hub is not installed; pip install huggingface_hub"
        ) from None
    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # the package has many: of the network, of names, of permissions
        raise CheckpointError(f"{name} cannot be fetched: {_first_line(error)}") from None
    for path in sorted(folder.iterdir()):
        _check(path)
    return folder


def _check(path: Path) -> None:
    """Compares a large file with the checksum under which the hub's cache keeps it."""
    expected = path.resolve().name
    if not _SHA256.fullmatch(expected):
        return  # a small file, kept under another kind of hash
    with open(path, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise CheckpointError(
            f"{path} is damaged: its SHA-256 is {found}, not {expected}; delete it and fetch again"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
