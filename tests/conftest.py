"""What every test shares: JAX on a CPU, checked shapes, and where the fixtures are."""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is most of what the tests do. These flags compile with less effort, in a quarter of the
# time; results differ by rounding. `XLA_FLAGS= pytest` compiles as a user's program does.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
# Four emulated devices, for everything about meshes. Steps queued on them can starve each other
# on two cores, so nothing is queued.
os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "false"
# Workers of the suite and the programs that tests start find here what another has compiled. The
# first process to read this makes the folder, and removes it when it ends.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _programs = tempfile.mkdtemp(prefix="timemoe_programs_")
    atexit.register(shutil.rmtree, _programs, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs
# No lines about what takes long.
os.environ["TIMEMOE_QUIET"] = "1"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jaxtyping

# The modules that compute: the others' public functions are tested with wrong types, too, and
# answer those with errors of their own.
COMPUTING = (
    *("nn", "models.decoding", "models.quantiles", "models.time_moe.model"),
    *("models.encoder.model", "models.encoder.windows", "models.encoder.decoding"),
    *("training.losses", "training.context_scaling", "training.objective", "training.step"),
    "forecasting.scoring.metrics",
)
jaxtyping.install_import_hook([f"timemoe_jax.{name}" for name in COMPUTING], "beartype.beartype")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from places import GOLDEN, TESTS, shared_folder  # noqa: E402

# Tracing makes many objects, and few of them are in cycles. Collecting less often, and not noting
# where each operation stands, took 7% off the CPU time of ten tests of updates.
gc.collect()
gc.freeze()
gc.set_threshold(100_000, 20, 20)
jax.config.update("jax_traceback_in_locations_limit", 0)

hypothesis.settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    max_examples=25,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tests")

# Begun first, the longest first, so that no worker waits for another at the end.
LONGEST = (
    *("runs/test_train.py", "runs/test_training_on_meshes.py", "training/test_step.py"),
    *("runs/test_nano_recipe.py", "test_docs.py", "test_golden_numbers.py"),
    *("runtime/test_partitioning.py", "models/test_encoders.py", "models/test_parity.py"),
    *("benchmarks/test_data_loading_script.py", "benchmarks/test_joint_scripts.py"),
    *("models/test_encoder_parity.py", "models/test_time_moe.py", "evaluation/test_studies.py"),
    *("training/test_quantile_training.py", "models/test_quantile_heads.py"),
    *("runs/test_mini_recipe.py", "training/test_finetuning.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {TESTS / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(LONGEST)))


PARITY = ("moe_tiny", "moe", "gqa", "dense")


@pytest.fixture(autouse=True, scope="module")
def _cache_settings() -> Iterator[None]:
    """Undoes what a module's calls of the command line say about the cache of programs."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


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
