//! #[derive(Message)] for dotcompute.
