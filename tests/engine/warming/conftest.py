"""fake_builds.py is a helper of these tests alone; tests have no packages."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
