//! The async executor keeps every promise.

use dotcompute::Runtime;
use dotcompute_conformance::{Fixture, conformance_suite};

// Three workers: two for kernels that block their thread, one to go on with.
conformance_suite!(Fixture { executor: "async", builder: || Runtime::builder().workers(3) });
