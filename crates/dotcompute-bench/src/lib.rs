//! Peers and floors beside dotcompute, one harness.
