//! The bytes that host, child process and device agree on.
