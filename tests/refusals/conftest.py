import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def tmp_path():
    """A folder that every user may enter, which those of pytest are not and a data_path must be."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
