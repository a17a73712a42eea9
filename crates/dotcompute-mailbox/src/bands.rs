//! bands.
