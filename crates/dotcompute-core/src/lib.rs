//! Ring kernels: messages, lifecycle, executors, supervision, telemetry.
