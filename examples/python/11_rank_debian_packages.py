"""PageRank: which packages does a Debian system rest on?

The graph is found on the machine: each installed package links to those that it depends on. Seeds
turn the question round: what does this package rest on?

Run: python examples/python/11_rank_debian_packages.py
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pydotcompute.workloads import Graph

STATUS = Path("/var/lib/dpkg/status")

# What a system without dpkg ranks instead, in the same form.
SMALL = """\
Package: shell
Depends: libc (>= 2.36), libtinfo | libncurses

Package: libtinfo
Depends: libc

Package: python
Depends: libc, libssl, shell

Package: libssl
Pre-Depends: libc

Package: libc
Depends: libgcc

Package: libgcc
Depends: libc
"""


def dependencies(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each package, with the packages that it depends on; of alternatives the first."""
    for paragraph in text.split("\n\n"):
        name = re.search(r"^Package: (\S+)", paragraph, re.MULTILINE)
        if name is None:
            continue
        needs = re.findall(r"^(?:Pre-)?Depends: (.+)", paragraph, re.MULTILINE)
        terms = [term.strip() for line in needs for term in line.split(",")]
        yield name[1], [re.split(r"[\s:(|]", term)[0] for term in terms if term]


def main() -> None:
    text = STATUS.read_text(errors="replace") if STATUS.exists() else SMALL
    needs = dict(dependencies(text))
    names = sorted({*needs, *(need for all_needs in needs.values() for need in all_needs)})
    number = {name: index for index, name in enumerate(names)}
    edges = np.array(
        [(number[name], number[need]) for name, all_needs in needs.items() for need in all_needs],
        np.uint32,
    ).reshape(-1, 2)

    graph = Graph(edges, nodes=len(names))
    ranked = graph.rank(tolerance=1e-10)
    assert ranked.converged
    assert abs(ranked.ranks.sum() - 1.0) < 1e-9
    print(f"{graph.nodes} packages, {graph.links} dependencies, {ranked.iterations} turns")
    for node in ranked.ranks.argsort()[::-1][:10]:
        print(f"{ranked.ranks[node]:.4f}  {names[node]}")

    # From one package: the share of rank that does not follow a dependency goes back to it.
    of = max(needs, key=lambda name: len(needs[name]))
    rests = graph.rank(seeds=[number[of]], tolerance=1e-10).ranks
    first = [names[node] for node in rests.argsort()[::-1] if names[node] != of][:5]
    print(f"{of} rests on: {', '.join(first)}")
    assert rests[[number[need] for need in needs[of]]].min() > 0.0


if __name__ == "__main__":
    main()
