//! Rings, priority mailboxes and waiting: the only crate of dotcompute with atomics.
