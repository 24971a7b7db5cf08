//! stub
use std::os::fd::OwnedFd;
use serde::{Deserialize, Serialize};
use crate::{admin, config};
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin { Bound, Systemd, FdStore, Daemon, Reexec }
#[derive(Debug)]
pub struct Held { pub name: String, pub listener: config::Listener, pub fd: OwnedFd, pub origin: Origin }
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kept { pub name: String, pub inode: u64 }
#[derive(Debug)]
pub struct Gathered { pub held: Vec<Held>, pub missing: Vec<String>, pub complaints: Vec<String> }
pub fn gather(_: &[config::Listener], _: Vec<(String, OwnedFd, Origin)>, _: Option<u32>, _: &[Kept]) -> Result<Gathered, String> { Err(String::new()) }
impl Held {
    pub fn status(&self) -> admin::Listener { admin::Listener::default() }
    pub fn kept(&self) -> Option<Kept> { None }
    pub fn waiting(&self) -> Option<(&str, u32)> { None }
}
pub fn remove(_: &Held) {}
