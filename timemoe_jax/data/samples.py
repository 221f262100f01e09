"""Small real series that come with the library; `samples/README.md` says where they are from."""

from pathlib import Path

from timemoe_jax.data.formats.csv_files import Table, read_csv
from timemoe_jax.errors import DataError

SAMPLES = ("greensboro_hourly", "new_york_daily", "mauna_loa_co2_weekly")

_FOLDER = Path(__file__).parent / "samples"


def sample_path(name: str) -> Path:
    """The CSV of a sample, one of `SAMPLES`; a DataError says that there is none of the name."""
    if name not in SAMPLES:
        raise DataError(f"there is no sample {name!r}; it must be one of {', '.join(SAMPLES)}")
    return _FOLDER / f"{name}.csv"


def load_sample(name: str) -> Table:
    """Reads a sample: its dates [T] and its values [T, C], none missing, in units of the README."""
    return read_csv(sample_path(name))
