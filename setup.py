"""What pyproject.toml cannot say: the configs and the model card travel inside the package."""

import shutil
import sys
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036  (pip would name a dependency instead)
    sys.exit(f"timemoe_jax needs Python 3.11 or newer, but this is {sys.version.split()[0]}")

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

CARD = "docs/model_card_nano.md"
CARD_IN_WHEEL = (
    "timemoe_jax/checkpoints/bundled/nano.md"  # its folder holds what its checksums list
)


class BuildWithCard(build_py):
    """Puts the model card beside the model that it is of."""

    def run(self) -> None:
        """Builds the packages, then copies the card; an editable install reads it in docs/."""
        super().run()
        if not self.editable_mode:
            shutil.copyfile(CARD, Path(self.build_lib) / CARD_IN_WHEEL)


setup(
    packages=[*find_packages(include=["timemoe_jax", "timemoe_jax.*"]), "timemoe_jax.configs"],
    package_dir={"timemoe_jax.configs": "configs"},
    cmdclass={"build_py": BuildWithCard},
)
