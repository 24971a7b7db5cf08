//! Who holds the lock, looked at all the time (I1).

use super::*;

/// A daemon, and when it was started: the number of one that has ended may come to mean another's thread.
#[derive(Clone, Debug)]
struct Daemon {
    pid: u32,
    born: Option<u64>,
}

impl Daemon {
    fn is_there(&self) -> bool {
        let runs = PidFd::open(self.pid).is_ok_and(|it| !it.has_exited());
        runs && self.born.is_some() && start_time(self.pid) == self.born
    }
}

/// I1: looks all the time who holds the lock.
pub(super) struct Watch {
    daemons: Arc<Mutex<Vec<Daemon>>>,
    over: Arc<AtomicBool>,
    thread: thread::JoinHandle<(Option<String>, Duration)>,
}

impl Watch {
    pub(super) fn start(data_dir: PathBuf) -> Self {
        let (daemons, over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (watched, stopped) = (Arc::clone(&daemons), Arc::clone(&over));
        let thread = thread::spawn(move || {
            let (mut doubled, mut stalled) = (None, Duration::ZERO);
            while !stopped.load(Ordering::Relaxed) {
                let daemons = watched.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let holds = |it: &Daemon| is_held_by(&data_dir, it.pid) && it.is_there();
                let holders: Vec<_> = daemons.into_iter().filter(holds).collect();
                // One may have let go before the other took it, between the two looks.
                if holders.len() > 1 && holders.iter().all(holds) {
                    doubled.get_or_insert(format!("I1: the lock is held by {holders:?}"));
                }
                let parked = Instant::now();
                thread::park_timeout(WATCH);
                let late = parked.elapsed().saturating_sub(WATCH);
                stalled += if late > STALL { late } else { Duration::ZERO };
            }
            (doubled, stalled)
        });
        Self { daemons, over, thread }
    }

    pub(super) fn add(&self, pid: u32) {
        let daemon = Daemon { pid, born: start_time(pid) };
        self.daemons.lock().unwrap_or_else(PoisonError::into_inner).push(daemon);
    }

    /// How many of the daemons have not ended, whoever is to reap them.
    pub(super) fn alive(&self) -> usize {
        let daemons = self.daemons.lock().unwrap_or_else(PoisonError::into_inner);
        daemons.iter().filter(|it| it.is_there()).count()
    }

    /// Who held it at the same time, and for how long the machine stood still.
    pub(super) fn stop(self) -> (Option<String>, Duration) {
        self.over.store(true, Ordering::Relaxed);
        let panicked = |_| (Some("I1: the watch has panicked".into()), Duration::ZERO);
        self.thread.join().unwrap_or_else(panicked)
    }
}
