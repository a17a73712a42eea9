//! Real work on the public API of dotcompute.
//!
//! [`anomaly`] finds the unusual readings in a stream: text in, one kernel that parses, one that
//! keeps a running mean and variance per key, alerts out. `dotcompute stream` is this module with a
//! command line around it. [`pagerank`] ranks the nodes of a graph by the links to them;
//! `dotcompute pagerank` is its command line. With the feature `tables` both read Parquet and Arrow.

pub mod anomaly;
pub mod pagerank;
#[cfg(feature = "tables")]
pub mod tables;
