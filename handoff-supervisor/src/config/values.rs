//! What the values of a configuration mean, and what is wrong with those that mean nothing.

use std::ffi::CString;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use handoff_unix::control::{ControlPath, ControlPathError};
use nix::unistd;

use super::User;
use super::reader::Fault;

/// The longest path that a socket can be bound to: `sun_path` of Linux, less the final NUL.
const LONGEST_SOCKET: usize = 107;
/// The shortest time there is: nothing shorter crosses the wire.
const SHORTEST: Duration = Duration::from_millis(1);
/// The longest time that is taken for meant.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// A time, in whole milliseconds, from 1 ms to a day.
pub(super) fn time(text: &str) -> Result<Duration, Fault> {
    const REMEDY: &str = "write a number and a unit (ms, s, m, h), such as \"60s\"";
    let time = humantime::parse_duration(text)
        .map_err(|_| Fault::new(format!("must be a time such as \"60s\", not {text:?}"), REMEDY))?;
    if time < SHORTEST {
        return Err(Fault::new(
            format!("must be at least 1ms, not {text:?}"),
            "write a longer time, or leave the key out",
        ));
    }
    if time > LONGEST {
        return Err(Fault::new(format!("must be at most 24h, not {text:?}"), REMEDY));
    }
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Ok(Duration::from_millis(millis))
}

/// An address and a port, in numbers. Port 0 is any that is free.
pub(super) fn address(text: &str) -> Result<SocketAddr, Fault> {
    text.parse().map_err(|_| {
        let what = format!("must be an address such as \"127.0.0.1:8080\", not {text:?}");
        let remedy = match text.rsplit_once(':') {
            Some(("", port)) if port.parse::<u16>().is_ok() => {
                format!("write \"0.0.0.0:{port}\", or \"[::]:{port}\", for every interface")
            }
            Some((host, port)) if port.parse::<u16>().is_ok() && host.parse::<IpAddr>().is_ok() => {
                format!("put brackets around an IPv6 address: \"[{host}]:{port}\"")
            }
            _ if text.parse::<IpAddr>().is_ok() => format!("add the port: \"{}\"", with_port(text)),
            Some((_, port)) if port.parse::<u16>().is_ok() => {
                "write the address in numbers: names are not looked up".to_owned()
            }
            Some((_, port)) if port.parse::<u64>().is_ok() => {
                "the port must be from 0 to 65535".to_owned()
            }
            _ => "write the address in numbers, a colon, and the port".to_owned(),
        };
        Fault::new(what, remedy)
    })
}

fn with_port(ip: &str) -> String {
    if ip.contains(':') { format!("[{ip}]:8080") } else { format!("{ip}:8080") }
}

/// An absolute path.
pub(super) fn path(text: &str) -> Result<PathBuf, Fault> {
    if text.is_empty() {
        return Err(Fault::new("is empty", "write the full path, from /"));
    }
    if let Some(rest) = text.strip_prefix('~') {
        return Err(Fault::new(
            format!("must be an absolute path, not {text:?}"),
            format!("write the home directory out: \"/home/…{rest}\""),
        ));
    }
    if !text.starts_with('/') {
        return Err(Fault::new(
            format!("must be an absolute path, not {text:?}"),
            "write the full path, from /",
        ));
    }
    Ok(text.into())
}

/// An absolute path of a socket that is bound beside its place and renamed into it.
pub(super) fn control_path(text: &str) -> Result<PathBuf, Fault> {
    let path = path(text)?;
    match ControlPath::new(path) {
        Ok(control) => Ok(control.as_path().to_owned()),
        Err(ControlPathError::TooLong { len, limit, .. }) => Err(too_long(len, limit)),
        Err(_) => Err(Fault::new(
            format!("must name a socket, not {text:?}"),
            "end the path with the name of a file",
        )),
    }
}

/// An absolute path of a socket.
pub(super) fn socket_path(text: &str) -> Result<PathBuf, Fault> {
    let path = path(text)?;
    if text.ends_with('/') || path.file_name().is_none() {
        return Err(Fault::new(
            format!("must name a socket, not {text:?}"),
            "end the path with the name of a file",
        ));
    }
    if text.len() > LONGEST_SOCKET {
        return Err(too_long(text.len(), LONGEST_SOCKET));
    }
    Ok(path)
}

fn too_long(len: usize, limit: usize) -> Fault {
    Fault::new(
        format!("is too long for a socket: {len} bytes, and {limit} are the most"),
        "choose a shorter path, in /run for instance",
    )
}

/// Permissions of a file, in octal.
pub(super) fn mode(text: &str) -> Result<u32, Fault> {
    let octal = !text.is_empty() && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    match u32::from_str_radix(text, 8) {
        Ok(mode) if octal && mode <= 0o777 => Ok(mode),
        _ => Err(Fault::new(
            format!("must be permissions such as \"0660\", not {text:?}"),
            "write three octal digits, from \"0000\" to \"0777\"",
        )),
    }
}

/// A user of the system, by name or number.
pub(super) fn user(text: &str) -> Result<User, Fault> {
    let looked_up = |e: &dyn Display| {
        Fault::new(
            format!("names {text:?}, and the system's users cannot be looked up: {e}"),
            "repair the system's user database (getent passwd)",
        )
    };
    let number = text.parse::<u32>().ok();
    let by_name = unistd::User::from_name(text).map_err(|e| looked_up(&e))?;
    let found = match (by_name, number) {
        (Some(found), _) => Some(found),
        (None, Some(uid)) => unistd::User::from_uid(uid.into()).map_err(|e| looked_up(&e))?,
        (None, None) => None,
    };
    let own = User::current();
    let Some(found) = found else {
        if number == Some(own.uid) {
            return Ok(own);
        }
        return Err(Fault::new(
            format!("names {text:?}, and there is no such user"),
            "write a user's name or number (`getent passwd` lists them), or add the user",
        ));
    };
    let name = CString::new(found.name.as_str()).unwrap_or_default();
    let groups = unistd::getgrouplist(&name, found.gid).map_err(|e| looked_up(&e))?;
    Ok(User {
        name: found.name,
        uid: found.uid.as_raw(),
        gid: found.gid.as_raw(),
        groups: groups.into_iter().map(unistd::Gid::as_raw).collect(),
    })
}

impl User {
    /// The user that this process runs as.
    #[must_use]
    pub(crate) fn current() -> Self {
        let (uid, gid) = (unistd::geteuid(), unistd::getegid());
        let name = unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
        let mut groups = vec![gid.as_raw()];
        groups.extend(unistd::getgroups().unwrap_or_default().into_iter().map(unistd::Gid::as_raw));
        Self {
            name: name.unwrap_or_else(|| uid.to_string()),
            uid: uid.as_raw(),
            gid: gid.as_raw(),
            groups,
        }
    }
}

/// A plain URL on this machine: where it leads, and the path and query.
pub(super) fn health(text: &str) -> Result<(SocketAddr, String), Fault> {
    const REMEDY: &str = "write \"http://127.0.0.1:8080/healthz\", with the daemon's own port";
    let fault = |what: &str| Fault::new(format!("{what}, not {text:?}"), REMEDY);
    let uri: hyper::Uri = text
        .parse()
        .map_err(|_| fault("must be a URL such as \"http://127.0.0.1:8080/healthz\""))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => {
            return Err(Fault::new(
                "must be plain http: the daemon is looked at on this machine",
                "have the daemon answer http on a loopback address, and name that",
            ));
        }
        _ => return Err(fault("must begin with http://")),
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(fault("must have no user name"));
    }
    let host = uri.host().unwrap_or_default();
    let ip = match host.trim_start_matches('[').trim_end_matches(']') {
        "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        host => host
            .parse()
            .ok()
            .filter(IpAddr::is_loopback)
            .ok_or_else(|| fault("must lead to this machine: 127.0.0.1, [::1] or localhost"))?,
    };
    let port = match uri.port_u16() {
        Some(0) => return Err(fault("must have a port that the daemon listens on")),
        Some(port) => port,
        None => 80,
    };
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    Ok((SocketAddr::new(ip, port), path.to_owned()))
}

/// A pattern of paths.
pub(super) fn pattern(text: &str) -> Result<String, Fault> {
    if !text.starts_with('/') {
        return Err(Fault::new(
            format!("must hold absolute paths, not {text:?}"),
            "write the full path, from /, such as \"/opt/kv/*/kv\"",
        ));
    }
    if text.contains("**") {
        return Err(Fault::new(
            format!("has {text:?}, and ** means nothing here"),
            "write one * for each part: it stands for what is between two slashes",
        ));
    }
    if text.split('/').any(|part| part == "." || part == "..") {
        return Err(Fault::new(
            format!("has {text:?}, with a part that is . or .."),
            "write the path without it",
        ));
    }
    if text.ends_with('/') {
        return Err(Fault::new(
            format!("has {text:?}, which is a directory"),
            format!("write \"{text}*\" for every file in it"),
        ));
    }
    Ok(text.to_owned())
}

/// What is wrong with the name of a variable for the daemon's environment, if anything.
pub(super) fn variable(name: &str) -> Result<(), Fault> {
    const RESERVED: [&str; 4] =
        ["NOTIFY_SOCKET", "HANDOFF_ROLE", "HANDOFF_SOCK_FD", "HANDOFF_HELLO_MS"];
    if RESERVED.contains(&name) || name.starts_with("LISTEN_") || name.starts_with("WATCHDOG_") {
        return Err(Fault::new(
            format!("{name} is set by the supervisor, and by nobody else"),
            "remove it: what the daemon needs of it, it gets",
        ));
    }
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(word) || name.starts_with(|c: char| c.is_ascii_digit())
    {
        return Err(Fault::new(
            format!("no variable can be called {name:?}"),
            "use letters, digits and _, and no digit first",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_health_url_leads_to_this_machine() {
        let well = |text: &str| health(text).unwrap();
        assert_eq!(
            well("http://127.0.0.1:80/a?b=c"),
            ("127.0.0.1:80".parse().unwrap(), "/a?b=c".into())
        );
        assert_eq!(well("http://localhost:81"), ("127.0.0.1:81".parse().unwrap(), "/".into()));
        assert_eq!(well("http://[::1]:82/x"), ("[::1]:82".parse().unwrap(), "/x".into()));
        assert_eq!(well("http://127.1.2.3/").0, "127.1.2.3:80".parse().unwrap());
    }

    #[test]
    fn this_user_is_a_user() {
        let me = User::current();
        assert_eq!(user(&me.uid.to_string()).unwrap().uid, me.uid);
        assert_eq!(user("root").unwrap().uid, 0);
        assert_eq!(user("0").unwrap().name, "root");
    }
}
