//! Who holds the lock, looked at all the time (I1).

use super::*;

/// I1: looks all the time who holds the lock.
pub(super) struct Watch {
    pids: Arc<Mutex<Vec<(u32, String)>>>,
    over: Arc<AtomicBool>,
    thread: thread::JoinHandle<(Option<String>, Duration)>,
}

impl Watch {
    pub(super) fn start(data_dir: PathBuf) -> Self {
        let (pids, over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (watched, stopped) = (Arc::clone(&pids), Arc::clone(&over));
        let thread = thread::spawn(move || {
            let (mut doubled, mut stalled) = (None, Duration::ZERO);
            while !stopped.load(Ordering::Relaxed) {
                let pids = watched.lock().unwrap_or_else(PoisonError::into_inner).clone();
                // The number of one that has ended may have come to mean another's thread.
                let holds = |(pid, born): &(u32, String)| {
                    is_held_by(&data_dir, *pid) && birth(*pid) == *born
                };
                let holders: Vec<_> = pids.into_iter().filter(holds).collect();
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
        Self { pids, over, thread }
    }

    pub(super) fn add(&self, pid: u32) {
        self.pids.lock().unwrap_or_else(PoisonError::into_inner).push((pid, birth(pid)));
    }

    /// Who held it at the same time, and for how long the machine stood still.
    pub(super) fn stop(self) -> (Option<String>, Duration) {
        self.over.store(true, Ordering::Relaxed);
        let panicked = |_| (Some("I1: the watch has panicked".into()), Duration::ZERO);
        self.thread.join().unwrap_or_else(panicked)
    }
}
