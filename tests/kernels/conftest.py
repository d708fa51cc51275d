"""attention_steps.py and serving.py are helpers of the tests of kernels; tests have no packages."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
