//! A listener, in this process.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use crate::adapters::{Adapter, PATIENCE, first, polled};
use crate::bench::fds;

/// Connects, and says which connection it is.
fn connect(listener: &TcpListener, number: u8) -> TcpStream {
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.write_all(&[number]).unwrap();
    client
}

fn number(mut stream: TcpStream) -> u8 {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut number = [0];
    stream.read_exact(&mut number).unwrap();
    number[0]
}

/// The next connection, which is there.
async fn next<A: Adapter>(listener: &A::Listener) -> u8 {
    let late = async {
        let limit = Instant::now() + PATIENCE;
        while Instant::now() < limit {
            A::pause().await;
        }
    };
    let Ok(stream) = first(A::accept(listener), late).await else {
        panic!("a connection was lost");
    };
    number(stream)
}

pub async fn an_accept_that_is_dropped_loses_no_connection<A: Adapter>(_: &str) {
    A::warm().await;
    for blocking in [true, false] {
        let plain = TcpListener::bind("127.0.0.1:0").unwrap();
        plain.set_nonblocking(!blocking).unwrap();
        let clients = plain.try_clone().unwrap();
        let before = fds();
        let listener = A::listener(plain);
        let mut expected = 0..=u8::MAX;
        for polls in 0..4 {
            // It waits already; it comes while the accept is pending; it comes afterwards.
            for when in 0..3 {
                let mut seen = BTreeSet::new();
                let sent = expected.next().unwrap();
                let mut client = (when == 0).then(|| connect(&clients, sent));
                let mut accept = Box::pin(A::accept(&listener));
                let mut taken = polled(accept.as_mut(), polls.min(1)).await;
                if when == 1 {
                    client = Some(connect(&clients, sent));
                    // The runtime may have seen it by now, or not.
                    for _ in 0..polls {
                        A::pause().await;
                    }
                }
                if taken.is_none() {
                    taken = first(polled(accept.as_mut(), polls), A::pause()).await.ok().flatten();
                }
                drop(accept);
                let client = client.unwrap_or_else(|| connect(&clients, sent));
                seen.insert(match taken {
                    Some(stream) => number(stream),
                    None => next::<A>(&listener).await,
                });
                assert_eq!(seen, BTreeSet::from([sent]), "{polls} polls, {when}");
                drop(client);
            }
        }

        // Of two that wait the one that was woken is dropped: the other gets the connection.
        for pauses in 0..4 {
            let sent = expected.next().unwrap();
            let clone = listener.clone();
            let mut one = Box::pin(A::accept(&listener));
            let mut other = Box::pin(next::<A>(&clone));
            assert!(polled(one.as_mut(), 1).await.is_none());
            assert!(polled(other.as_mut(), 1).await.is_none());
            let client = connect(&clients, sent);
            for _ in 0..pauses {
                A::pause().await;
            }
            drop(one);
            assert_eq!(other.await, sent);
            drop(client);
        }
        drop(listener);
        let mut left = before.clone();
        *left.get_mut("socket").unwrap() -= 1;
        assert_eq!(fds(), left);
    }
}
