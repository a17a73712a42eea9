"""Compiles the handlers of the Python tests for the architectures that are supported.

Writes each as FOLDER/NAME-MAJOR.MINOR.ltoir, for `offline_python.rs`. Run by `make cuda-offline`,
without a GPU.
"""

import sys
from pathlib import Path

from device_handlers import clerk
from parity_handler import book

from pydotcompute.handlers import compile_for_cuda

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
for handler in (book, clerk):
    for capability in ((8, 0), (9, 0), (10, 0)):
        code = compile_for_cuda(handler, compute_capability=capability)
        name = f"{code.symbol}-{capability[0]}.{capability[1]}.ltoir"
        (folder / name).write_bytes(code.data)
