"""The handler that is run everywhere, compiled for a GPU to PTX: the fourth place of `make parity`.

Compiled only: no GPU is needed, but numba-cuda is. It says what was compiled, on one line.
"""

import re

from parity_handler import book

from pydotcompute.handlers import compile_for_cuda

code = compile_for_cuda(book, compute_capability=(9, 0), output="ptx")
text = code.data.decode()
target = re.search(r"^\.target sm_(\d+)", text, re.MULTILINE)
assert target is not None, text[:500]
assert target[1] == "90", target[0]
assert re.search(rf"^\.visible \.func .*\b{code.symbol}\(", text, re.MULTILINE), text[:2000]
instructions = len(re.findall(r";$", text, re.MULTILINE))
print(f"compiled for sm_90: handler '{code.symbol}', {instructions} lines of PTX")
