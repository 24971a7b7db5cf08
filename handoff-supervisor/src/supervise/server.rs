//! The supervisor's socket: requests come in, replies go out. Nothing that a client does or leaves undone
//! holds up anybody else.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use handoff_unix::probe::Users;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};

use super::Mail;
use crate::admin::{LONGEST_REQUEST, Refusal, Reply, Request};
use crate::exit;

/// How many clients are served at a time. Others wait to be accepted.
const CLIENTS: usize = 64;
/// How many of them may watch, so that whoever only looks keeps nobody from acting.
const WATCHERS: usize = CLIENTS / 2;
/// How long a client may take to say what it wants.
const REQUEST: Duration = Duration::from_secs(5);
/// How long it may take to read a reply.
const READ: Duration = Duration::from_secs(10);
/// How long a supervisor that has said that it goes may take to be gone.
const GOING: Duration = Duration::from_secs(15);
/// How many replies wait for a client that is slow; further progress is left out.
const REPLIES: usize = 64;
/// How often a watched status is shown at most, and at least.
const WATCH: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// What clients need of the supervisor.
#[derive(Clone, Debug)]
pub(super) struct Desk {
    pub(super) mail: mpsc::UnboundedSender<Mail>,
    /// Changes when something has happened.
    pub(super) news: watch::Receiver<u64>,
    /// Who may ask (R12).
    pub(super) users: Users,
    /// Places for those who watch.
    pub(super) watchers: Arc<Semaphore>,
}

impl Desk {
    pub(super) fn new(
        mail: mpsc::UnboundedSender<Mail>,
        news: watch::Receiver<u64>,
        users: Users,
    ) -> Self {
        Self { mail, news, users, watchers: Arc::new(Semaphore::new(WATCHERS)) }
    }
}

/// Serves clients, for ever.
pub(super) async fn serve(listener: UnixListener, desk: Desk) {
    let places = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let desk = desk.clone();
                tokio::spawn(async move {
                    if let Err(error) = client(stream, &desk).await {
                        tracing::debug!(%error, "a client of the supervisor's socket");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the supervisor's socket: cannot accept");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn client(stream: UnixStream, desk: &Desk) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let (reader, mut writer) = stream.into_split();
    if !desk.users.allow(uid) {
        tracing::warn!(uid, "the supervisor's socket: this user may not use it");
        // Not a word: who may not ask learns nothing.
        return Ok(());
    }
    let mut reader = BufReader::new(reader);
    let request = match timeout(REQUEST, read(&mut reader)).await {
        Ok(Ok(Some(request))) => request,
        Ok(Ok(None)) => return Ok(()),
        Ok(Err(problem)) => {
            let message = format!("the request is not understood: {problem}");
            let refusal = Refusal { code: "bad_request".into(), exit: exit::PROTOCOL, message };
            return write(&mut writer, &Reply::Refused(refusal)).await;
        }
        Err(_) => return Ok(()),
    };
    let watches = request == Request::Status { watch: true };
    let watcher = watches.then(|| Arc::clone(&desk.watchers).try_acquire_owned());
    if let Some(Err(_)) = watcher {
        let message = format!("{WATCHERS} clients watch already; end some of them");
        let refusal = Refusal { code: "busy".into(), exit: exit::TEMPORARY, message };
        return write(&mut writer, &Reply::Refused(refusal)).await;
    }
    // A client says one thing. That it is gone is seen when it is written to.
    answer(&mut writer, request, uid, desk).await
}

async fn answer(
    writer: &mut (impl AsyncWriteExt + Unpin),
    request: Request,
    uid: u32,
    desk: &Desk,
) -> io::Result<()> {
    let watches = request == Request::Status { watch: true };
    let ends = matches!(request, Request::Stop | Request::Reexec { .. });
    let mut news = desk.news.clone();
    loop {
        news.mark_unchanged();
        let (to, mut replies) = mpsc::channel(REPLIES);
        let mail = Mail::Request { request: request.clone(), uid, to };
        if desk.mail.send(mail).is_err() {
            return Ok(());
        }
        while let Some(reply) = replies.recv().await {
            write(writer, &reply).await?;
            // Whoever waits for the last one to be written sees the channel closed.
            if !matches!(reply, Reply::Progress(_)) {
                break;
            }
        }
        if !watches {
            drop(replies);
            if ends {
                // Its end tells the client that this process, or its program, is no more.
                sleep(GOING).await;
            }
            return Ok(());
        }
        sleep(WATCH.0).await;
        if let Ok(Err(_)) = timeout(WATCH.1, news.changed()).await {
            return Ok(());
        }
    }
}

async fn read(reader: &mut (impl AsyncBufReadExt + Unpin)) -> Result<Option<Request>, String> {
    let mut line = Vec::new();
    let limit = LONGEST_REQUEST as u64 + 1;
    let mut limited = AsyncReadExt::take(reader, limit);
    limited.read_until(b'\n', &mut line).await.map_err(|error| error.to_string())?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => serde_json::from_slice(&line).map(Some).map_err(|error| error.to_string()),
        Some(_) if line.len() > LONGEST_REQUEST => {
            Err(format!("it is longer than {LONGEST_REQUEST} bytes"))
        }
        Some(_) => Err("it ends in the middle of a line".to_string()),
    }
}

async fn write(writer: &mut (impl AsyncWriteExt + Unpin), reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    timeout(READ, writer.write_all(&line)).await?
}
