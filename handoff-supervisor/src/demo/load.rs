//! The load: clients in a closed loop, and what became of their requests.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A request that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Requests a second of all clients together, at most. Each is a connection of its own, which the
/// daemon closes first: what lingers of it (TIME_WAIT, a minute) is at the daemon's end, and no client
/// runs out of ports. The kernel keeps 131 072 of those before it cuts them short.
const RATE: u32 = 2_000;

/// How long reading back may take.
const READ_BACK: Duration = Duration::from_secs(60);

/// What clients do and have seen. Shared by all of them.
#[derive(Debug)]
pub(super) struct Load {
    address: SocketAddr,
    clients: u32,
    stopped: AtomicBool,
    requests: AtomicU64,
    failed: AtomicU64,
    longest_us: AtomicU64,
    acknowledged: Mutex<Vec<Write>>,
    failures: Mutex<BTreeMap<String, u64>>,
}

/// A write that is made once; its key and its value are no other's.
#[derive(Clone, Copy, Debug)]
struct Write {
    client: u32,
    number: u32,
}

impl Write {
    fn key(self) -> String {
        format!("/{}-{}", self.client, self.number)
    }

    fn value(self) -> String {
        format!("write {} of client {}", self.number, self.client)
    }
}

/// Why a request failed.
#[derive(Debug)]
enum Failure {
    Connect(std::io::Error),
    Send(std::io::Error),
    Receive(std::io::Error),
    CutShort,
    Status(u16),
    WrongValue,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "cannot connect: {error}"),
            Self::Send(error) => write!(f, "cannot send the request: {error}"),
            Self::Receive(error) => write!(f, "no answer: {error}"),
            Self::CutShort => f.write_str("the answer is cut short"),
            Self::Status(status) => write!(f, "answered with status {status}"),
            Self::WrongValue => f.write_str("answered with another value than was written"),
        }
    }
}

/// Stops the load when it is dropped, so that nobody waits for clients that run for ever.
#[derive(Debug)]
pub(super) struct StopLoad<'a>(pub(super) &'a Load);

impl Drop for StopLoad<'_> {
    fn drop(&mut self) {
        self.0.stopped.store(true, Ordering::Release);
    }
}

impl Load {
    pub(super) fn new(address: SocketAddr, clients: u32) -> Self {
        Self {
            address,
            clients,
            stopped: AtomicBool::default(),
            requests: AtomicU64::default(),
            failed: AtomicU64::default(),
            longest_us: AtomicU64::default(),
            acknowledged: Mutex::default(),
            failures: Mutex::default(),
        }
    }

    /// One client: half of them write, half of them read what was acknowledged. Ends when the load is
    /// stopped, or at `end`.
    pub(super) fn client(&self, client: u32, end: Instant) {
        let pace = Duration::from_secs(1) * self.clients / RATE;
        let mut place = client as usize;
        for number in 0.. {
            let start = Instant::now();
            if self.stopped.load(Ordering::Acquire) || start >= end {
                return;
            }
            // A reader that finds nothing to read yet writes.
            place = place
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            match self.acknowledged_at(place >> 16).filter(|_| client % 2 == 1) {
                Some(write) => drop(self.count(self.read(write))),
                None => self.write(Write { client, number }),
            }
            thread::sleep(pace.saturating_sub(start.elapsed()));
        }
    }

    /// Reads every acknowledged write back, with all clients; gives how many were not there. What could
    /// not be read before `is_over` said so, or a minute had passed, counts as not there.
    pub(super) fn read_back(&self, is_over: impl Fn() -> bool + Sync) -> u64 {
        let writes = self.acknowledged().clone();
        let end = Instant::now() + READ_BACK;
        let part = writes.len().div_ceil(self.clients as usize).max(1);
        let there = AtomicU64::new(0);
        thread::scope(|scope| {
            for part in writes.chunks(part) {
                scope.spawn(|| {
                    for write in part.iter().take_while(|_| Instant::now() < end && !is_over()) {
                        if self.count(self.read(*write)) {
                            there.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        writes.len() as u64 - there.into_inner()
    }

    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(super) fn failed_requests(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    pub(super) fn acked_writes(&self) -> u64 {
        self.acknowledged().len() as u64
    }

    pub(super) fn longest_pause(&self) -> Duration {
        Duration::from_micros(self.longest_us.load(Ordering::Relaxed))
    }

    /// The reasons for which requests failed, the most frequent first.
    pub(super) fn failures(&self) -> Vec<(String, u64)> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut failures: Vec<_> = failures.into_iter().collect();
        failures.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        failures
    }

    fn acknowledged(&self) -> MutexGuard<'_, Vec<Write>> {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn acknowledged_at(&self, place: usize) -> Option<Write> {
        let acknowledged = self.acknowledged();
        (!acknowledged.is_empty()).then(|| acknowledged[place % acknowledged.len()])
    }

    fn write(&self, write: Write) {
        let (key, value) = (write.key(), write.value());
        let length = value.len();
        let request = format!("PUT {key} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{value}");
        let result = self.exchange(&request).map(drop);
        if self.count(result) {
            self.acknowledged().push(write);
        }
    }

    fn read(&self, write: Write) -> Result<(), Failure> {
        let body = self.exchange(&format!("GET {} HTTP/1.1\r\n\r\n", write.key()))?;
        if body == write.value().as_bytes() { Ok(()) } else { Err(Failure::WrongValue) }
    }

    /// Notes a request that failed; whether it succeeded.
    fn count(&self, result: Result<(), Failure>) -> bool {
        if let Err(failure) = &result {
            self.failed.fetch_add(1, Ordering::Relaxed);
            let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            *failures.entry(failure.to_string()).or_default() += 1;
        }
        result.is_ok()
    }

    fn exchange(&self, request: &str) -> Result<Vec<u8>, Failure> {
        let start = Instant::now();
        let answer = self.attempt(request);
        let pause = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.longest_us.fetch_max(pause, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        parse(&answer?)
    }

    fn attempt(&self, request: &str) -> Result<Vec<u8>, Failure> {
        let mut stream =
            TcpStream::connect_timeout(&self.address, PATIENCE).map_err(Failure::Connect)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(Failure::Connect)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(Failure::Connect)?;
        stream.write_all(request.as_bytes()).map_err(Failure::Send)?;
        let mut answer = Vec::new();
        // To the end: the daemon is the one to close first.
        stream.read_to_end(&mut answer).map_err(Failure::Receive)?;
        Ok(answer)
    }
}

/// The body of a whole, successful answer.
fn parse(answer: &[u8]) -> Result<Vec<u8>, Failure> {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut parsed = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(head)) = parsed.parse(answer) else {
        return Err(Failure::CutShort);
    };
    match parsed.code {
        Some(200..=299) => {}
        status => return Err(Failure::Status(status.unwrap_or_default())),
    }
    let length = parsed.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length"));
    let length = match length {
        Some(header) => std::str::from_utf8(header.value).ok().and_then(|text| text.parse().ok()),
        // An answer of this kind has no body, and needs no length to say so.
        None => (parsed.code == Some(204)).then_some(0),
    };
    let body = &answer[head..];
    if length == Some(body.len()) { Ok(body.to_vec()) } else { Err(Failure::CutShort) }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers each of the connections with one of `answers`, then refuses.
    fn server<const N: usize>(answers: [&'static str; N]) -> (SocketAddr, thread::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        (address, thread)
    }

    const WRITTEN: &str = "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n";
    const WRITE: Write = Write { client: 0, number: 0 };

    #[test]
    fn i3_a_write_that_is_not_read_back_is_lost() {
        let other = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother";
        let (address, server) = server([WRITTEN, other]);
        let load = Load::new(address, 1);
        load.write(WRITE);
        assert_eq!((load.acked_writes(), load.failed_requests()), (1, 0));
        assert_eq!(load.read_back(|| false), 1);
        assert_eq!((load.requests(), load.failed_requests()), (2, 1));
        server.join().unwrap();
    }

    #[test]
    fn i4_a_refused_connection_is_a_failed_request_with_its_reason() {
        let (address, server) = server([]);
        server.join().unwrap();
        let load = Load::new(address, 1);
        load.write(WRITE);
        assert_eq!((load.requests(), load.failed_requests(), load.acked_writes()), (1, 1, 0));
        let failures = load.failures();
        assert!(failures[0].0.starts_with("cannot connect: Connection refused"), "{failures:?}");
    }

    #[test]
    fn an_answer_that_is_no_success_or_not_whole_acknowledges_nothing() {
        let (address, server) = server([
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 204 No Content\r\nContent-Length: 1\r\n\r\n",
            "HTTP/1.1 204 No Con",
            "",
        ]);
        let load = Load::new(address, 1);
        for _ in 0..4 {
            load.write(WRITE);
        }
        assert_eq!((load.failed_requests(), load.acked_writes()), (4, 0));
        let reasons = load.failures();
        let cut_short = ("the answer is cut short".to_owned(), 3);
        assert_eq!(reasons, [cut_short, ("answered with status 503".to_owned(), 1)]);
        server.join().unwrap();
    }

    #[test]
    fn the_load_ends_in_time_even_if_nobody_stops_it() {
        let (address, server) = server([WRITTEN]);
        let load = Load::new(address, 1);
        load.client(0, Instant::now() + Duration::from_millis(20));
        assert!(load.requests() <= 1 + u64::from(RATE) / 50 + 1);
        server.join().unwrap();
    }
}
