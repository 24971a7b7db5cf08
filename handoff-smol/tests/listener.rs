//! A listener in either mode is accepted on, and left in its mode (R13).
#![allow(clippy::unwrap_used, reason = "a test")]

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};

use handoff_smol::Listener;

#[test]
fn r13_tcp_in_either_mode() {
    smol::block_on(async {
        for nonblocking in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(nonblocking).unwrap();
            let listener = Listener::new(listener).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (_, peer) = listener.clone().accept().await.unwrap();
            assert_eq!(peer, client.local_addr().unwrap());

            // smol's own would block the executor on the one, and is given for the other.
            match listener.to_smol() {
                Ok(smol) => {
                    assert!(nonblocking);
                    let _client = TcpStream::connect(smol.local_addr().unwrap()).unwrap();
                    smol.accept().await.unwrap();
                }
                Err(error) => {
                    assert!(!nonblocking, "{error}");
                    assert_eq!(error.kind(), ErrorKind::InvalidInput);
                }
            }
        }
    });
}

#[test]
fn r13_unix_in_either_mode() {
    let dir = tempfile::Builder::new().prefix("smol listener ").tempdir().unwrap();
    smol::block_on(async {
        for nonblocking in [false, true] {
            let path = dir.path().join(nonblocking.to_string());
            let listener = UnixListener::bind(&path).unwrap();
            listener.set_nonblocking(nonblocking).unwrap();
            let listener = Listener::new(listener).unwrap();
            let _client = UnixStream::connect(&path).unwrap();
            listener.accept().await.unwrap();
            assert_eq!(listener.to_smol().is_ok(), nonblocking);
        }
    });
}
