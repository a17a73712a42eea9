//! Real work on the public API of dotcompute: streaming anomaly detection.
