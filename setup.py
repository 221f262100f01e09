"""What pyproject.toml cannot say: the configs and the model cards travel inside the package."""

import shutil
import sys
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036  (pip would name a dependency instead)
    sys.exit(f"timemoe_jax needs Python 3.11 or newer, but this is {sys.version.split()[0]}")

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

CARDS = {  # the folder of a model holds what its checksums list, and nothing else
    f"docs/model_card_{name}.md": f"timemoe_jax/checkpoints/bundled/{name}.md"
    for name in ("mini", "nano")
}


class BuildWithCards(build_py):
    """Puts each model card beside the model that it is of."""

    def run(self) -> None:
        """Builds the packages, then copies the cards; an editable install reads them in docs/."""
        super().run()
        if not self.editable_mode:
            for card, place in CARDS.items():
                shutil.copyfile(card, Path(self.build_lib) / place)


setup(
    packages=[*find_packages(include=["timemoe_jax", "timemoe_jax.*"]), "timemoe_jax.configs"],
    package_dir={"timemoe_jax.configs": "configs"},
    cmdclass={"build_py": BuildWithCards},
)
