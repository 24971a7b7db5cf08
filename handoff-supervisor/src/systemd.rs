//! stub
use std::os::fd::{OwnedFd, BorrowedFd};
use std::time::Duration;
use crate::sockets::Origin;
#[derive(Debug)]
pub struct Systemd;
impl Systemd {
    pub fn from_env() -> Self { Self }
    pub fn ready(&self, _: &str) {}
    pub fn status(&self, _: &str) {}
    pub fn reloading(&self) {}
    pub fn stopping(&self) {}
    pub fn beat(&self) {}
    pub fn watchdog(&self) -> Option<Duration> { None }
    pub fn store(&self, _: &str, _: BorrowedFd<'_>) {}
    pub fn unstore(&self, _: &str) {}
}
pub fn given() -> Result<Vec<(String, OwnedFd, Origin)>, String> { Ok(Vec::new()) }
