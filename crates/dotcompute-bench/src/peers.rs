//! The peers and floors, each measured the way its own documentation recommends.

pub(crate) mod actix;
pub(crate) mod crossbeam;
pub(crate) mod kameo;
pub(crate) mod memory;
pub(crate) mod ractor;
pub(crate) mod raw;
pub(crate) mod rows;
pub(crate) mod rtrb;
pub(crate) mod tokio;
