//! The `dotcompute` command.

fn main() {}
