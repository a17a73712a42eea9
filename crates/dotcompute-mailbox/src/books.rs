//! books.
