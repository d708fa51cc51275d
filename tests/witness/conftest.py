"""witness.py is a helper of several folders' tests; tests have no packages."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
