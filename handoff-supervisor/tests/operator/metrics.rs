//! What Prometheus reads.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};

use super::bench::{Bench, request};

/// What is there, by name and labels, but for the buckets.
fn metrics(address: SocketAddr) -> BTreeMap<String, f64> {
    let (status, page) = request(address, "GET", "metrics", "").unwrap();
    assert_eq!(status, 200, "{page}");
    let lines = page.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let parsed = lines.filter_map(|line| {
        // The length of a part, where the page is sent in parts.
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_string(), value.parse().unwrap()))
    });
    parsed.filter(|(name, _)| !name.contains("_bucket{")).collect()
}

#[test]
fn every_metric_is_there_after_a_commit_a_rollback_and_an_abort() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut bench = Bench::new("");
    bench.configure("[supervisor]", &format!("metrics = \"{address}\""));
    bench.start();
    let is = |name: &str, value: f64| {
        let metrics = metrics(address);
        assert_eq!(metrics.get(name), Some(&value), "{name}: {metrics:#?}");
    };
    is("handoff_handoffs_total", 0.0);
    is("handoff_in_progress", 0.0);
    is("handoff_generation", 1.0);
    is("handoff_incumbent_up", 1.0);
    is(&format!("handoff_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION")), 1.0);

    bench.handoff(&["swap", bench.version("v2", "").to_str().unwrap()]).exits(0);
    is("handoff_handoffs_total", 1.0);
    is("handoff_outcomes_total{outcome=\"committed\",reason=\"none\"}", 1.0);
    is("handoff_duration_seconds_count", 1.0);
    is("handoff_unavailable_seconds_count", 1.0);
    is("handoff_open_connections_at_commit", 0.0);
    is("handoff_generation", 2.0);
    for phase in ["warm", "drain", "seal", "open", "commit"] {
        is(&format!("handoff_phase_duration_seconds_count{{phase=\"{phase}\"}}"), 1.0);
    }
    let depth = "handoff_accept_queue_depth_max{listener=\"http\"}";
    assert!(metrics(address).contains_key(depth), "{:#?}", metrics(address));

    let unfit = bench.version("unfit", "export KV_UNHEALTHY=1");
    bench.handoff(&["swap", unfit.to_str().unwrap()]).exits(75);
    is("handoff_handoffs_total", 2.0);
    is("handoff_outcomes_total{outcome=\"rolled_back\",reason=\"unhealthy\"}", 1.0);
    is("handoff_duration_seconds_count", 2.0);
    is("handoff_unavailable_seconds_count", 2.0);
    is("handoff_phase_duration_seconds_count{phase=\"rollback\"}", 1.0);
    is("handoff_phase_duration_seconds_count{phase=\"commit\"}", 1.0);
    is("handoff_generation", 2.0);
    let metrics_now = metrics(address);
    let sum = metrics_now["handoff_unavailable_seconds_sum"];
    assert!(sum > 0.0 && sum < metrics_now["handoff_duration_seconds_sum"], "{metrics_now:#?}");

    // Nobody waits where the old daemon was never told.
    let stuck = bench.version("stuck", "sleep 600");
    bench.handoff(&["swap", stuck.to_str().unwrap(), "--no-wait"]).exits(0);
    is("handoff_in_progress", 1.0);
    bench.handoff(&["abort"]).exits(0);
    is("handoff_in_progress", 0.0);
    is("handoff_outcomes_total{outcome=\"refused\",reason=\"operator_abort\"}", 1.0);
    is("handoff_unavailable_seconds_count", 2.0);
    let (_, page) = request(address, "GET", "metrics", "").unwrap();
    for (name, kind) in [
        ("handoff_handoffs_total", "counter"),
        ("handoff_outcomes_total", "counter"),
        ("handoff_duration_seconds", "histogram"),
        ("handoff_phase_duration_seconds", "histogram"),
        ("handoff_unavailable_seconds", "histogram"),
        ("handoff_accept_queue_depth_max", "gauge"),
        ("handoff_open_connections_at_commit", "gauge"),
        ("handoff_in_progress", "gauge"),
        ("handoff_generation", "gauge"),
        ("handoff_incumbent_up", "gauge"),
        ("handoff_build_info", "gauge"),
    ] {
        assert!(page.contains(&format!("# TYPE {name} {kind}\n")), "{name}: {page}");
        assert!(page.contains(&format!("# HELP {name} ")), "{name}: {page}");
    }
    bench.handoff(&["stop"]).exits(0);
    assert_eq!(bench.ends(), 0);
}
