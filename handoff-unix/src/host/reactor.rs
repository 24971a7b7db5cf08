//! A machine with its sockets and its clock, all behind one descriptor.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use handoff_core::driver::{Action, ActionOf, Driver, InputOf};
use handoff_core::wire::Decoder;
use handoff_core::{Credentials, Instant, Machine, Message};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::{step_begins, step_is_over};
use crate::Clock;
use crate::stream::ControlStream;
use crate::wake::Waker;

/// How much of one connection is read before the others have their turn: more than a socket holds
/// unless its buffer was made larger, so what had arrived when the look began is read by then.
const SHARE: usize = 256 << 10;

/// How many descriptors are looked at in one turn: more than there are.
const LOOK: usize = 128;

/// Names of descriptors; whoever uses the reactor takes those below [`TIMER`].
const TIMER: u64 = u64::MAX;
const MAIL: u64 = u64::MAX - 1;
/// Streams are named from here on.
const STREAMS: u64 = 1 << 32;

/// Puts mail of type `T` into a [`Reactor`] from any thread.
#[derive(Debug)]
pub(super) struct Mailbox<T> {
    sender: Sender<T>,
    waker: Waker,
}

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), waker: self.waker.clone() }
    }
}

impl<T> Mailbox<T> {
    /// Mail to a reactor that is gone is dropped.
    pub(super) fn send(&self, mail: T) {
        if self.put(mail) {
            self.wake();
        }
    }

    /// Leaves mail for the next turn, whenever that is; whether there can be one.
    pub(super) fn put(&self, mail: T) -> bool {
        self.sender.send(mail).is_ok()
    }

    /// Makes a turn due.
    pub(super) fn wake(&self) {
        self.waker.wake();
    }
}

#[derive(Debug)]
struct Connection<P> {
    peer: P,
    stream: ControlStream,
    name: u64,
    /// Whether it is watched for room to write.
    writes: bool,
}

/// What a look at the descriptors came to.
#[derive(Debug)]
pub(super) struct Look<P> {
    /// Whether there was anything.
    pub(super) any: bool,
    /// Which of the names given to [`Reactor::watch`] have something to tell.
    pub(super) names: Vec<u64>,
    /// Who said who it is with its first bytes.
    pub(super) introduced: Vec<(P, Credentials)>,
}

/// A driver with its sockets.
pub(super) struct Reactor<M: Machine, T> {
    driver: Driver<M>,
    clock: Clock,
    epoll: Arc<OwnedFd>,
    timer: OwnedFd,
    /// When the timer goes off. It may be earlier than the deadline: it is set again then.
    armed: Option<Instant>,
    connections: Vec<Connection<M::Peer>>,
    named: u64,
    mailbox: Mailbox<T>,
    mail: Receiver<T>,
    actions: Vec<ActionOf<M>>,
    /// When the descriptors were last looked at.
    looked: Instant,
    /// There may be more to take in.
    more: bool,
    /// Not every descriptor was looked at.
    partial: bool,
    /// When a pause is over.
    paused: Option<Instant>,
    buffer: Box<[u8]>,
}

impl<M: Machine, T> Reactor<M, T> {
    pub(super) fn new(machine: M) -> io::Result<Self> {
        let (sender, mail) = channel();
        let mailbox = Mailbox { sender, waker: Waker::new()? };
        let epoll = Arc::new(epoll::create(CreateFlags::CLOEXEC)?);
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        epoll::add(&epoll, &mailbox.waker, EventData::new_u64(MAIL), EventFlags::IN)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;
        Ok(Self {
            driver: Driver::new(machine),
            clock: Clock::start(),
            epoll,
            timer,
            armed: None,
            connections: Vec::new(),
            named: STREAMS,
            mailbox,
            mail,
            actions: Vec::new(),
            looked: Instant::ORIGIN,
            more: false,
            partial: false,
            paused: None,
            buffer: vec![0; 16 << 10].into_boxed_slice(),
        })
    }

    pub(super) fn mailbox(&self) -> &Mailbox<T> {
        &self.mailbox
    }

    /// The descriptor that is readable when there is something to take in.
    pub(super) fn descriptor(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.epoll)
    }

    pub(super) fn machine(&self) -> &M {
        self.driver.machine()
    }

    /// Whether a peer's name is in use.
    pub(super) fn has(&self, peer: M::Peer) -> bool {
        self.connections.iter().any(|connection| connection.peer == peer)
    }

    /// Whether there is something to carry out.
    pub(super) fn pending(&self) -> bool {
        !self.actions.is_empty()
    }

    /// Watches a descriptor under a name, until [`Reactor::unwatch`].
    pub(super) fn watch(&self, fd: impl AsFd, name: u64) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(name), EventFlags::IN)?)
    }

    pub(super) fn unwatch(&self, fd: impl AsFd) {
        // It fails only for what is not watched.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Takes on a connection. One that cannot be watched has ended before it began.
    pub(super) fn add(&mut self, peer: M::Peer, mut stream: ControlStream) {
        let name = self.named;
        self.named += 1;
        let watched = self.watch(&stream, name);
        let cred = stream.introduction();
        self.connections.push(Connection { peer, stream, name, writes: false });
        if let Some(cred) = cred {
            self.driver.opened(self.clock.now(), peer, cred, &mut self.actions);
        }
        if let Err(error) = watched {
            tracing::warn!(?peer, %error, "a control connection cannot be watched");
            self.forget(peer);
            self.driver.closed(self.clock.now(), peer, &mut self.actions);
        }
    }

    pub(super) fn handle(&mut self, input: InputOf<M>) {
        self.driver.handle(self.clock.now(), input, &mut self.actions);
    }

    /// The next thing to carry out. Connections that are to be closed are closed here.
    pub(super) fn next_action(&mut self) -> Option<ActionOf<M>> {
        while !self.actions.is_empty() {
            match self.actions.remove(0) {
                ActionOf::<M>::Close { peer, unsent } => {
                    if let Some(connection) = self.forget(peer) {
                        let _ = write(&connection.stream, &unsent);
                    }
                }
                action => return Some(action),
            }
        }
        None
    }

    /// Writes what is unsent already now, unless there is an effect among what is to be carried out that is to
    /// be begun before anything is said of it.
    pub(super) fn flush_unless(&mut self, first: impl Fn(&M::Effect) -> bool) {
        let mut actions = self.actions.iter();
        if !actions.any(|action| matches!(action, Action::Do(effect) if first(effect))) {
            self.flush();
        }
    }

    /// The events among what is to be carried out; the rest stays.
    pub(super) fn events(&mut self) -> Vec<M::Event> {
        let events = self.actions.extract_if(.., |action| matches!(action, Action::Event(_)));
        events
            .filter_map(|action| match action {
                Action::Event(event) => Some(event),
                _ => None,
            })
            .collect()
    }

    /// Everything is carried out: writes what is unsent, and lets the descriptor be waited for.
    pub(super) fn settle(&mut self) {
        self.flush();
        self.arm();
    }

    /// Takes in what has arrived, so that [`Reactor::tick`] comes after it (T5).
    pub(super) fn look(&mut self) -> io::Result<Look<M::Peer>> {
        // What is due only after this look is for the next one.
        self.looked = self.clock.now();
        let mut room = [const { MaybeUninit::uninit() }; LOOK];
        let events = loop {
            match epoll::wait(&self.epoll, &mut room, Some(&Timespec::default())) {
                Ok((events, _)) => break &*events,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        self.partial = events.len() == LOOK;
        self.more = self.partial;
        let mut look = Look { any: !events.is_empty(), names: Vec::new(), introduced: Vec::new() };
        for event in events {
            match event.data.u64() {
                TIMER => self.armed = Some(Instant::ORIGIN),
                MAIL => drop(self.mailbox.waker.drain()),
                name if name < STREAMS => look.names.push(name),
                name => self.read(name, &mut look.introduced),
            }
        }
        Ok(look)
    }

    /// Mail that has arrived. To be asked after [`Reactor::look`] until there is none.
    pub(super) fn mail(&self) -> Option<T> {
        self.mail.try_recv().ok()
    }

    /// Begins a pause: the descriptor becomes readable when it is over.
    pub(super) fn pause(&mut self, pause: Duration) {
        self.paused = Some(self.clock.now() + pause);
    }

    /// Whether a pause is not over yet.
    pub(super) fn pauses(&mut self) -> bool {
        let now = self.clock.now();
        self.paused = self.paused.filter(|over| *over > now);
        self.paused.is_some()
    }

    /// Tells that something was left for the next look.
    pub(super) fn leave_some(&mut self) {
        self.more = true;
    }

    /// Tells the time, if a deadline has come. To be called once what a look brought was handed in.
    pub(super) fn tick(&mut self) {
        let looked = self.looked;
        if !self.partial && self.driver.deadline().is_some_and(|deadline| deadline.at <= looked) {
            self.driver.tick(looked, &mut self.actions);
        }
    }

    fn read(&mut self, name: u64, introduced: &mut Vec<(M::Peer, Credentials)>) {
        let mut share = 0;
        while share < SHARE {
            let found = self.connections.iter_mut().find(|connection| connection.name == name);
            let Some(Connection { peer, stream, .. }) = found else { return };
            let (now, peer) = (self.clock.now(), *peer);
            match stream.read(&mut self.buffer) {
                Ok(count) if count > 0 => {
                    share += count;
                    if let Some(cred) = stream.introduction() {
                        introduced.push((peer, cred));
                        self.driver.opened(now, peer, cred, &mut self.actions);
                    }
                    self.driver.received(now, peer, &self.buffer[..count], &mut self.actions);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                ended => {
                    if let Err(error) = ended {
                        tracing::debug!(?peer, %error, "a control connection broke");
                    }
                    self.forget(peer);
                    return self.driver.closed(now, peer, &mut self.actions);
                }
            }
        }
        self.more = true;
    }

    fn forget(&mut self, peer: M::Peer) -> Option<Connection<M::Peer>> {
        let place = self.connections.iter().position(|connection| connection.peer == peer)?;
        let connection = self.connections.swap_remove(place);
        self.unwatch(&connection.stream);
        Some(connection)
    }

    fn flush(&mut self) {
        let Self { driver, connections, epoll, .. } = self;
        for Connection { peer, stream, name, writes } in connections {
            while !driver.unsent(*peer).is_empty() {
                match write(stream, driver.unsent(*peer)) {
                    Ok(count) => driver.sent(*peer, count),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // Not the end: what has arrived is still to be read (C3).
                    Err(_) => driver.sent(*peer, usize::MAX),
                }
            }
            let waits = !driver.unsent(*peer).is_empty();
            if waits != *writes {
                let both = EventFlags::IN | EventFlags::OUT;
                let flags = if waits { both } else { EventFlags::IN };
                let changed = epoll::modify(&*epoll, &*stream, EventData::new_u64(*name), flags);
                *writes = if changed.is_ok() { waits } else { *writes };
            }
        }
    }

    /// Sets the timer to the deadline, unless it goes off before that anyway.
    fn arm(&mut self) {
        let now = self.clock.now();
        let deadline = self.driver.deadline().map(|due| due.at);
        let due = if self.more { Some(now) } else { deadline.into_iter().chain(self.paused).min() };
        let set = match (due, self.armed) {
            (Some(due), Some(armed)) => due < armed || armed <= now,
            (Some(_), None) => true,
            (None, armed) => armed.is_some_and(|armed| armed <= now),
        };
        if !set {
            return;
        }
        // Zero would switch it off.
        let left = due.map(|due| due.saturating_since(now).max(Duration::from_nanos(1)));
        let left = left.and_then(|left| Timespec::try_from(left).ok()).unwrap_or_default();
        let once = Itimerspec { it_interval: Timespec::default(), it_value: left };
        match timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once) {
            Ok(_) => self.armed = due,
            Err(error) => tracing::error!(%error, "the timer cannot be set"),
        }
    }
}

/// Writes what is unsent, and tells of the messages in it.
fn write(stream: &ControlStream, unsent: &[u8]) -> io::Result<usize> {
    if !tracing::enabled!(target: "handoff::step", tracing::Level::TRACE) {
        return stream.write(unsent);
    }
    let (mut decoder, mut bytes, mut messages) = (Decoder::new(), unsent, Vec::new());
    if let Some(&[low, high]) = unsent.get(4..6) {
        decoder.handshake_done(u16::from_le_bytes([low, high]));
    }
    // The rest of a message whose beginning was written before is none.
    while let Ok(Some(frame)) = decoder.decode(&mut bytes) {
        messages.push(frame.message);
    }
    messages.retain(|message| !matches!(message, Message::Heartbeat { .. }));
    messages.iter().for_each(|message| step_begins(message));
    let written = stream.write(unsent);
    messages.iter().for_each(|message| step_is_over(message));
    written
}

impl<M: Machine + fmt::Debug, T> fmt::Debug for Reactor<M, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reactor").field(self.machine()).finish()
    }
}

impl<M: Machine, T> AsFd for Reactor<M, T> {
    /// Readable when there is something to take in.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
