//! Probation: a new daemon that turns unhealthy is swapped back.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::{self, JoinHandle};

use super::bench::{Bench, Load};

/// A server that tells whoever asks how the daemon is: what a test says.
struct Doctor {
    address: SocketAddr,
    answer: Arc<AtomicU16>,
    over: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Doctor {
    fn who_says(status: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (answer, over) = (Arc::new(AtomicU16::new(status)), Arc::new(AtomicBool::new(false)));
        let (says, ends) = (Arc::clone(&answer), Arc::clone(&over));
        let server = thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                let mut stream = stream.unwrap();
                let mut request = BufReader::new(stream.try_clone().unwrap()).lines();
                // Who asks may have gone.
                while request.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
                let status = says.load(Ordering::Relaxed);
                let _ = write!(stream, "HTTP/1.1 {status} So\r\nContent-Length: 0\r\n\r\n");
            }
        });
        Self { address, answer, over, server: Some(server) }
    }

    fn says(&self, status: u16) {
        self.answer.store(status, Ordering::Relaxed);
    }
}

impl Drop for Doctor {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        drop(std::net::TcpStream::connect(self.address));
        self.server.take().unwrap().join().unwrap();
    }
}

/// A bench whose daemon this doctor looks after.
fn bench(doctor: &Doctor, more: &str) -> Bench {
    let bench = Bench::new(more);
    let url = format!("http://{}/healthz", doctor.address);
    let health = format!("[handoff.health]\nhttp = {url:?}\nevery = \"50ms\"\nfailures = 2");
    bench.configure("", &health);
    bench
}

#[test]
fn who_turns_unhealthy_on_probation_is_swapped_back() {
    let doctor = Doctor::who_says(200);
    let mut bench = bench(&doctor, "probation = \"1h\"");
    bench.start();
    bench.until("it is healthy", |status| status["serving"]["healthy"] == true);
    let load = Load::start(bench.address);
    let (first, second) = (bench.path("v1"), bench.version("v2", ""));
    bench.handoff(&["swap", second.to_str().unwrap()]).exits(0);
    let status = bench.until("it is healthy", |status| status["serving"]["healthy"] == true);
    assert_eq!(status["serving"]["binary"], second.to_str().unwrap());
    assert_eq!(status["probation"]["previous"], first.to_str().unwrap());

    doctor.says(503);
    let status = bench.until("it is swapped back", |status| status["serving"]["generation"] == 3);
    assert_eq!(status["serving"]["binary"], first.to_str().unwrap());
    assert_eq!(status["probation"], serde_json::Value::Null, "and that is the end of it");
    let last = &status["last"];
    assert_eq!((&last["kind"], &last["verdict"]), (&"probation".into(), &"committed".into()));
    assert_eq!(last["reason"], "the new daemon is unhealthy: it answers 503");
    assert_eq!(bench.history(), ["start", "swap", "probation"]);
    let said = bench.handoff(&["history"]).exits(0).words();
    assert!(said.contains("because: the new daemon is unhealthy: it answers 503"), "{said}");
    load.ends_clean();

    // There is nobody left to swap to: it is told, and nothing else.
    bench.until("it is unhealthy", |status| status["serving"]["healthy"] == false);
    let said = bench.handoff(&["status"]).exits(0);
    assert!(said.out.contains("generation 3, unhealthy"), "{said:?}");
    doctor.says(204);
    bench.until("it is healthy", |status| status["serving"]["healthy"] == true);
    assert_eq!(bench.history(), ["start", "swap", "probation"]);
    bench.handoff(&["stop"]).exits(0);
    assert_eq!(bench.ends(), 0);
}

#[test]
fn who_is_unhealthy_after_probation_stays() {
    let doctor = Doctor::who_says(200);
    let mut bench = bench(&doctor, "probation = \"1ms\"");
    bench.start();
    bench.handoff(&["swap", bench.version("v2", "").to_str().unwrap()]).exits(0);
    bench.until("its probation is over", |status| status["probation"].is_null());
    doctor.says(500);
    bench.until("it is unhealthy", |status| status["serving"]["healthy"] == false);
    assert_eq!(bench.status()["serving"]["generation"], 2);
    assert_eq!(bench.history(), ["start", "swap"]);
    bench.handoff(&["stop"]).exits(0);
    assert_eq!(bench.ends(), 0);
}
