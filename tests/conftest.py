"""What every test shares: JAX on a CPU, checked shapes, and where the fixtures are."""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is most of what the tests do. These flags compile with less effort, in a quarter of the
# time; results differ by rounding. `XLA_FLAGS= pytest` compiles as a user's program does.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false",
)
# Four emulated devices, for everything about meshes. Steps queued on them can starve each other
# on two cores, so nothing is queued.
os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "false"

import jaxtyping

# The modules that compute: the others' public functions are tested with wrong types, too, and
# answer those with errors of their own.
COMPUTING = (
    *("nn", "models.decoding", "models.quantiles", "models.time_moe.model"),
    *("training.losses", "training.context_scaling", "training.objective", "training.step"),
    "forecasting.scoring.metrics",
)
jaxtyping.install_import_hook([f"timemoe_jax.{name}" for name in COMPUTING], "beartype.beartype")

import hypothesis  # noqa: E402
import pytest  # noqa: E402
from places import GOLDEN, shared_folder  # noqa: E402

hypothesis.settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    max_examples=25,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tests")

PARITY = ("moe_tiny", "moe", "gqa", "dense")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The published folder that is part of the test suite."""
    return GOLDEN / "moe_tiny"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    folder = shared_folder()
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; TIMEMOE_SHARED names another place")
    return folder


@pytest.fixture(scope="module", params=PARITY)
def parity_folder(request: pytest.FixtureRequest) -> Path:
    """A published folder with what the published implementation computes from it."""
    if request.param == "moe_tiny":
        return GOLDEN / "moe_tiny"
    folder = shared_folder() / "parity" / request.param
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; TIMEMOE_SHARED names another place")
    return folder
