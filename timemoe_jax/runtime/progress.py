"""Lines and bars on the console, once for all processes."""

import sys
from typing import Any

from tqdm import tqdm

from timemoe_jax.runtime import distributed


def progress_bar(**options: Any) -> tqdm:
    """A tqdm bar; in a log file, which nobody watches live, it writes a line now and then."""
    live = sys.stderr.isatty()
    return tqdm(dynamic_ncols=live, mininterval=0.1 if live else 20, **options)


def say(text: str, stream: Any = None) -> None:
    """Prints a line, once for all processes, without breaking a progress bar."""
    if distributed.is_primary():
        tqdm.write(text, file=stream or sys.stdout)
        (stream or sys.stdout).flush()
