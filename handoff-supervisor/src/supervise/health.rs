//! A look at a daemon's health over HTTP.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::Health;

/// The longest head of an answer.
const LONGEST: usize = 16 << 10;

/// Whether it answers 2xx in time; else why not.
pub(super) async fn look(health: &Health) -> Result<(), String> {
    let late = || format!("no answer within {}", humantime::format_duration(health.timeout));
    match timeout(health.timeout.max(Duration::from_millis(1)), status(health)).await {
        Err(_) => Err(late()),
        Ok(Err(error)) => Err(format!("{}: {error}", health.address)),
        Ok(Ok(200..=299)) => Ok(()),
        Ok(Ok(status)) => Err(format!("it answers {status}")),
    }
}

async fn status(health: &Health) -> io::Result<u16> {
    let mut stream = TcpStream::connect(health.address).await?;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        health.path, health.address
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    loop {
        let mut buffer = [0; 1024];
        let count = stream.read(&mut buffer).await?;
        head.extend_from_slice(buffer.get(..count).unwrap_or_default());
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(&head);
        if let Some(code) = response.code {
            return Ok(code);
        }
        if parsed.is_err() || count == 0 || head.len() > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer is no HTTP"));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;

    async fn asked(answer: &'static [u8]) -> Result<(), String> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let count = stream.read(&mut request).await.unwrap();
            assert!(request[..count].starts_with(b"GET /healthz HTTP/1.1\r\n"));
            for byte in answer.chunks(1) {
                // It may have seen enough.
                let _ = stream.write_all(byte).await;
            }
        });
        let health = Health {
            address,
            path: "/healthz".into(),
            every: Duration::from_secs(1),
            timeout: Duration::from_secs(60),
            failures: 3,
        };
        let looked = look(&health).await;
        server.await.unwrap();
        looked
    }

    #[tokio::test]
    async fn well_is_who_answers_2xx() {
        assert_eq!(asked(b"HTTP/1.1 204 No Content\r\n\r\n").await, Ok(()));
        let sick = asked(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").await;
        assert_eq!(sick, Err("it answers 503".to_string()));
        assert!(asked(b"SSH-2.0\r\n").await.unwrap_err().ends_with("its answer is no HTTP"));
        assert!(asked(b"").await.unwrap_err().ends_with("its answer is no HTTP"));
    }
}
