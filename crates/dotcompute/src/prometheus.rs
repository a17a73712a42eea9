//! The telemetry of a runtime, served to Prometheus.

use std::net::SocketAddr;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;

use crate::Runtime;

/// How often the figures behind the endpoint are brought up to date.
const REFRESH: Duration = Duration::from_secs(1);

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
#[error("no Prometheus endpoint at {address}: {reason}")]
pub struct EndpointError {
    /// Where it was to listen.
    pub address: SocketAddr,
    /// What was in the way: the address is taken, or the program has another recorder already.
    pub reason: String,
}

/// Serves the telemetry of `runtime` at `http://ADDRESS/metrics`, for as long as the process runs,
/// from a thread of its own; and installs the recorder of the `metrics` facade for the program.
///
/// # Errors
///
/// If the address cannot be listened at, or the program has installed another recorder.
pub fn serve(address: SocketAddr, runtime: &Runtime) -> Result<(), EndpointError> {
    let failed = |reason: String| EndpointError { address, reason };
    // Probed first: the exporter binds on its own thread, where a failure could only be logged.
    drop(std::net::TcpListener::bind(address).map_err(|error| failed(error.to_string()))?);
    PrometheusBuilder::new()
        .with_http_listener(address)
        .install()
        .map_err(|error| failed(error.to_string()))?;
    runtime.publish_metrics(); // what is asked for right away is there
    let runtime = runtime.clone();
    std::thread::Builder::new()
        .name("dotcompute-metrics".into())
        .spawn(move || {
            loop {
                std::thread::park_timeout(REFRESH);
                runtime.publish_metrics();
            }
        })
        .map_err(|error| failed(error.to_string()))?;
    Ok(())
}
