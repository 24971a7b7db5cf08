//! A queue that a thread or a task of any runtime can wait for.

use std::future::poll_fn;
use std::sync::mpsc::{self, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Wakes the tasks that wait for something.
#[derive(Debug, Default)]
pub(super) struct Bell(Mutex<Vec<Waker>>);

impl Bell {
    fn waiting(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a task woken by the next ring. To be called before looking whether there is a reason to
    /// wait.
    pub(super) fn listen(&self, cx: &Context<'_>) {
        let mut waiting = self.waiting();
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
    }

    pub(super) fn ring(&self) {
        let waiting = std::mem::take(&mut *self.waiting());
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// Closes the queue when the last is dropped.
#[derive(Debug)]
pub(super) struct Sender<T> {
    to: Option<mpsc::Sender<T>>,
    bell: Arc<Bell>,
}

/// Drops what is left when it is dropped.
#[derive(Debug)]
pub(super) struct Receiver<T> {
    from: Mutex<mpsc::Receiver<T>>,
    bell: Arc<Bell>,
}

pub(super) fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let (to, from) = mpsc::channel();
    let bell = Arc::new(Bell::default());
    let receiver = Receiver { from: Mutex::new(from), bell: Arc::clone(&bell) };
    (Sender { to: Some(to), bell }, receiver)
}

impl<T> Sender<T> {
    /// What nobody can receive any more is dropped.
    pub(super) fn send(&self, item: T) {
        if let Some(to) = &self.to
            && to.send(item).is_ok()
        {
            self.bell.ring();
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.to = None;
        self.bell.ring();
    }
}

impl<T> Receiver<T> {
    fn from(&self) -> MutexGuard<'_, mpsc::Receiver<T>> {
        self.from.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next item, if there is one now.
    pub(super) fn try_next(&self) -> Option<T> {
        self.from().try_recv().ok()
    }

    /// The next item; `None` once the queue is closed and empty. Dropping the future loses none.
    pub(super) async fn next(&self) -> Option<T> {
        poll_fn(|cx| {
            self.bell.listen(cx);
            match self.from().try_recv() {
                Ok(item) => Poll::Ready(Some(item)),
                Err(TryRecvError::Disconnected) => Poll::Ready(None),
                Err(TryRecvError::Empty) => Poll::Pending,
            }
        })
        .await
    }

    /// The same on this thread.
    pub(super) fn wait(&self) -> Option<T> {
        self.from().recv().ok()
    }
}
