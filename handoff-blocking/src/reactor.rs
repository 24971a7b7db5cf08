//! The loop: read, write, sleep until the deadline, hand over what is left to do.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use handoff_core::driver::{ActionOf, Driver, InputOf};
use handoff_core::{Credentials, Instant, Machine};
use handoff_unix::Clock;
use handoff_unix::host::Job;
use handoff_unix::poll;
use handoff_unix::stream::ControlStream;
use handoff_unix::wake::Waker;
use rustix::event::{PollFd, PollFlags};

/// How much of one connection is read before the others have their turn.
const SHARE: usize = 64 << 10;

/// Puts mail of type `T` into a [`Reactor`] from any thread.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    sender: Sender<T>,
    waker: Waker,
}

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), waker: self.waker.clone() }
    }
}

impl<T: Send + 'static> Mailbox<T> {
    /// Mail to a reactor that is gone is dropped.
    pub(crate) fn send(&self, mail: T) {
        if self.sender.send(mail).is_ok() {
            self.waker.wake();
        }
    }

    /// Runs a job on a thread of its own and mails what it came to.
    pub(crate) fn run<R: 'static>(&self, job: Job<R>, mail: impl FnOnce(R) -> T + Send + 'static) {
        let to = self.clone();
        let task = Arc::new(Mutex::new(Some(move || to.send(mail(job())))));
        let theirs = Arc::clone(&task);
        let thread = std::thread::Builder::new().name("handoff-job".into());
        if thread.spawn(move || once(&theirs)).is_err() {
            // No thread can be had: the work is done here, late rather than never.
            once(&task);
        }
    }
}

fn once(task: &Mutex<Option<impl FnOnce()>>) {
    let taken = task.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(work) = taken {
        work();
    }
}

/// A driver with its sockets.
pub(crate) struct Reactor<M: Machine, T> {
    driver: Driver<M>,
    clock: Clock,
    streams: Vec<(M::Peer, ControlStream)>,
    mailbox: Mailbox<T>,
    mail: Receiver<T>,
    actions: Vec<ActionOf<M>>,
    /// When the sockets were last looked at.
    looked: Instant,

    /// Some connection had more to read than its share.
    more: bool,
    buffer: Box<[u8]>,
}

/// What a turn of the loop came back with.
pub(crate) struct Turn<P, T> {
    /// Which of the extra descriptors have something to tell.
    pub(crate) extra: Vec<usize>,
    /// Who said who it is with its first bytes.
    pub(crate) introduced: Vec<(P, Credentials)>,
    /// What was mailed.
    pub(crate) mail: Vec<T>,
}

impl<M: Machine, T: Send + 'static> Reactor<M, T> {
    pub(crate) fn new(machine: M) -> io::Result<Self> {
        let (sender, mail) = channel();
        let mailbox = Mailbox { sender, waker: Waker::new()? };
        let buffer = vec![0; 16 << 10].into_boxed_slice();
        let (driver, clock) = (Driver::new(machine), Clock::start());
        Ok(Self {
            driver,
            clock,
            streams: Vec::new(),
            mailbox,
            mail,
            actions: Vec::new(),
            looked: Instant::ORIGIN,

            more: false,
            buffer,
        })
    }

    pub(crate) fn mailbox(&self) -> Mailbox<T> {
        self.mailbox.clone()
    }

    pub(crate) fn machine(&self) -> &M {
        self.driver.machine()
    }

    /// Whether a peer's name is in use.
    pub(crate) fn has(&self, peer: M::Peer) -> bool {
        self.streams.iter().any(|(name, _)| *name == peer)
    }

    /// Whether there is something to carry out.
    pub(crate) fn pending(&self) -> bool {
        !self.actions.is_empty()
    }

    pub(crate) fn add(&mut self, peer: M::Peer, mut stream: ControlStream) {
        let cred = stream.introduction();
        self.streams.push((peer, stream));
        if let Some(cred) = cred {
            self.driver.opened(self.clock.now(), peer, cred, &mut self.actions);
        }
    }

    pub(crate) fn handle(&mut self, input: InputOf<M>) {
        self.driver.handle(self.clock.now(), input, &mut self.actions);
    }

    /// The next thing to carry out. Connections that are to be closed are closed here.
    pub(crate) fn next_action(&mut self) -> Option<ActionOf<M>> {
        while !self.actions.is_empty() {
            match self.actions.remove(0) {
                ActionOf::<M>::Close { peer, unsent } => {
                    if let Some(place) = self.streams.iter().position(|(name, _)| *name == peer) {
                        let _ = self.streams.remove(place).1.write(&unsent);
                    }
                }
                action => return Some(action),
            }
        }
        None
    }

    /// Sleeps until something happens, and takes in what has. What is in `extra`, and everything that
    /// has arrived, comes before a timer that has expired (T5). `limit` ends the sleep early.
    pub(crate) fn wait(
        &mut self,
        extra: &[BorrowedFd<'_>],
        limit: Option<Duration>,
    ) -> io::Result<Turn<M::Peer, T>> {
        self.flush();
        let timeout = if self.actions.is_empty() && !self.more {
            self.driver.deadline().map(|deadline| self.clock.until(deadline.at))
        } else {
            Some(Duration::ZERO)
        };
        let timeout = timeout.into_iter().chain(limit).min();
        let mut fds = vec![PollFd::new(&self.mailbox.waker, PollFlags::IN)];
        fds.extend(extra.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
        for (peer, stream) in &self.streams {
            let writes = !self.driver.unsent(*peer).is_empty();
            let flags = if writes { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            fds.push(PollFd::new(stream, flags));
        }
        // What is due only after this look is for the next one: first comes what has arrived (T5).
        self.looked = self.clock.now();
        poll::wait(&mut fds, timeout)?;
        let told: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let first = 1 + extra.len();
        let extra = (0..extra.len()).filter(|place| told[1 + place]).collect();
        if told[0] {
            self.mailbox.waker.drain();
        }
        let readable: Vec<M::Peer> = self
            .streams
            .iter()
            .zip(&told[first..])
            .filter(|(_, t)| **t)
            .map(|(s, _)| s.0)
            .collect();
        self.more = false;
        let mut introduced = Vec::new();
        for peer in readable {
            self.more |= self.read(peer, &mut introduced);
        }
        Ok(Turn { extra, introduced, mail: self.mail.try_iter().collect() })
    }

    /// Tells the time, if a deadline has come. To be called once what a turn brought was handed in.
    pub(crate) fn tick(&mut self) {
        let looked = self.looked;
        if !self.more && self.driver.deadline().is_some_and(|deadline| deadline.at <= looked) {
            self.driver.tick(looked, &mut self.actions);
        }
    }

    /// Reads a connection; whether there may be more than its share.
    fn read(&mut self, peer: M::Peer, introduced: &mut Vec<(M::Peer, Credentials)>) -> bool {
        let mut share = 0;
        while share < SHARE {
            let Some((_, stream)) = self.streams.iter_mut().find(|(name, _)| *name == peer) else {
                return false;
            };
            let now = self.clock.now();
            match stream.read(&mut self.buffer) {
                Ok(count) if count > 0 => {
                    share += count;
                    if let Some(cred) = stream.introduction() {
                        introduced.push((peer, cred));
                        self.driver.opened(now, peer, cred, &mut self.actions);
                    }
                    self.driver.received(now, peer, &self.buffer[..count], &mut self.actions);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                ended => {
                    if let Err(error) = ended {
                        tracing::debug!(?peer, %error, "a control connection broke");
                    }
                    self.streams.retain(|(name, _)| *name != peer);
                    self.driver.closed(now, peer, &mut self.actions);
                    return false;
                }
            }
        }
        true
    }

    fn flush(&mut self) {
        for (peer, stream) in &self.streams {
            while !self.driver.unsent(*peer).is_empty() {
                match stream.write(self.driver.unsent(*peer)) {
                    Ok(count) => self.driver.sent(*peer, count),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // Not the end: what has arrived is still to be read (C3).
                    Err(_) => self.driver.sent(*peer, usize::MAX),
                }
            }
        }
    }
}
