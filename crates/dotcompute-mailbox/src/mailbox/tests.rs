//! Each promise of the mailbox, one by one.

#[cfg(not(loom))]
mod against_model;
#[cfg(not(loom))]
mod basics;
#[cfg(loom)]
mod loom_models;
