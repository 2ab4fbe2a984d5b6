"""`python -m ringhaul.compiled`: compile all kernels now, and keep them for later processes."""

import sys

from ringhaul.compiled import is_available, load

if not is_available():
    sys.exit("numba is not installed: pip install 'ringhaul[fast]'")
sys.stdout.write(f"{load()} kernels are compiled and kept\n")
