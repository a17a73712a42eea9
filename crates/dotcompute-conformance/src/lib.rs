//! What every executor of dotcompute must do, as generic tests.
