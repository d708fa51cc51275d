import sys
from pathlib import Path

# worlds.py is a helper of these tests alone; tests have no packages.
sys.path.insert(0, str(Path(__file__).parent))
