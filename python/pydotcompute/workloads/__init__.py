"""Real work on the core: graphs that are ranked."""

from pydotcompute.workloads.pagerank import Graph, PageRank, pagerank

__all__ = ["Graph", "PageRank", "pagerank"]
