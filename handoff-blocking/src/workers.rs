//! The threads that jobs run on.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use handoff_unix::effects::Job;

/// How long a thread waits for another job: to start one takes longer than most of them do, and nobody
/// serves while a successor does. As long as tokio's wait.
const IDLE: Duration = Duration::from_secs(10);

/// Never more jobs than threads that wait, so that no job waits for another.
struct Workers {
    jobs: VecDeque<Job<()>>,
    waiting: usize,
}

static WORKERS: Mutex<Workers> = Mutex::new(Workers { jobs: VecDeque::new(), waiting: 0 });
static WORK: Condvar = Condvar::new();

fn workers() -> MutexGuard<'static, Workers> {
    WORKERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a job on a thread that does nothing else meanwhile; without one to be had, here, late rather
/// than never.
pub(crate) fn run(job: Job<()>) {
    let mut workers = workers();
    if workers.jobs.len() < workers.waiting {
        workers.jobs.push_back(job);
        // Who is woken needs it at once.
        drop(workers);
        return WORK.notify_one();
    }
    drop(workers);
    let job = Arc::new(Mutex::new(Some(job)));
    let once = |job: &Mutex<Option<Job<()>>>| {
        let job = job.lock().unwrap_or_else(PoisonError::into_inner).take();
        job.into_iter().for_each(|job| job());
    };
    let theirs = Arc::clone(&job);
    let thread = std::thread::Builder::new().name("handoff-job".into());
    let started = thread.spawn(move || {
        once(&theirs);
        work();
    });
    if started.is_err() {
        once(&job);
    }
}

/// Runs further jobs, as long as they come.
fn work() {
    loop {
        let mut workers = workers();
        workers.waiting += 1;
        let waited = WORK.wait_timeout_while(workers, IDLE, |workers| workers.jobs.is_empty());
        let (mut workers, _) = waited.unwrap_or_else(PoisonError::into_inner);
        workers.waiting -= 1;
        // A job that came as the time was over was left to this thread.
        let Some(job) = workers.jobs.pop_front() else { return };
        drop(workers);
        job();
    }
}
