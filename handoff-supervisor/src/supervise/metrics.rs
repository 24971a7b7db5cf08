//! What the command itself measures, and where Prometheus asks for it. Handoffs are measured in
//! `handoff-unix`.

use std::net::SocketAddr;

use metrics::{Unit, describe_gauge, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};

use crate::admin::{Entry, Serving};

/// Seconds.
const BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// Answers Prometheus at this address from now on.
///
/// # Errors
///
/// It cannot listen there.
pub(super) fn serve(address: SocketAddr) -> Result<(), String> {
    PrometheusBuilder::new()
        .with_http_listener(address)
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_string()), &BUCKETS)
        .and_then(PrometheusBuilder::install)
        .map_err(|error| format!("`metrics`: cannot answer at {address}: {error}"))?;
    describe_gauge!("handoff_generation", "How many daemons have served, including this one.");
    describe_gauge!("handoff_incumbent_up", "Whether a daemon serves.");
    describe_gauge!("handoff_build_info", "The version of the supervisor.");
    describe_gauge!(
        "handoff_accept_queue_depth_max",
        Unit::Count,
        "The most connections that waited at a listener during the last handoff."
    );
    gauge!("handoff_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(())
}

/// Who serves.
pub(super) fn publish(serving: Option<&Serving>) {
    gauge!("handoff_incumbent_up").set(if serving.is_some() { 1.0 } else { 0.0 });
    if let Some(serving) = serving {
        #[allow(clippy::cast_precision_loss, reason = "nobody counts that far")]
        gauge!("handoff_generation").set(serving.generation as f64);
    }
}

/// A handoff has ended.
pub(super) fn ended(entry: &Entry) {
    for (listener, most) in &entry.waiting_max {
        gauge!("handoff_accept_queue_depth_max", "listener" => listener.clone())
            .set(f64::from(*most));
    }
}
