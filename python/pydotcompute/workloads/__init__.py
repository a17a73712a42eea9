"""Real work on the core: graphs that are ranked, streams whose unusual readings are found."""

from pydotcompute.workloads import anomaly
from pydotcompute.workloads.pagerank import Graph, PageRank, pagerank

__all__ = ["Graph", "PageRank", "anomaly", "pagerank"]
