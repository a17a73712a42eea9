//! inbox.
