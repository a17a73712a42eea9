//! The thread executor keeps every promise.

use dotcompute::Runtime;
use dotcompute_conformance::{Fixture, Place, conformance_suite};

conformance_suite!(Fixture { executor: "thread", builder: Runtime::builder, place: Place::Here });
