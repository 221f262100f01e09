"""Where the tests find things: the project, the fixtures, and what is shared beside it."""

import os
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
GOLDEN = TESTS / "golden"


def shared_folder() -> Path:
    """Fixtures and data too large for the repository; TIMEMOE_SHARED says where they are."""
    return Path(os.environ.get("TIMEMOE_SHARED", ROOT.parent / "shared"))
