//! Who it is, and what a probe leaves.

use super::*;

pub(super) fn says_hello(probe: &Incumbent, log: &Log) -> Seen {
    let (conn, hello) = probe.greeted("1", log)?;
    let Some(cred) = conn.cred() else {
        return skip("the kernel does not say who listens");
    };
    if cred.pid != 0 && cred.pid != hello.pid {
        let (pid, said) = (cred.pid, hello.pid);
        return fail(format!("Hello says pid {said}, the kernel says {pid}"));
    }
    let own = rustix::process::geteuid().as_raw();
    if cred.uid != own && cred.uid != 0 && own != 0 {
        return fail(format!("it runs as user {}, not as user {own}", cred.uid));
    }
    if hello.frame_version != hello.proto.1 {
        return fail(format!(
            "Hello is in a frame of version {}, and its highest version is {}",
            hello.frame_version, hello.proto.1
        ));
    }
    let build: String = String::from_utf8_lossy(&hello.build_id).escape_debug().take(40).collect();
    Ok(format!("Hello of pid {}, user {}, build \"{build}\"", hello.pid, cred.uid))
}

pub(super) fn offers_a_range(probe: &Incumbent, log: &Log) -> Seen {
    let (_conn, hello) = probe.greeted("1", log)?;
    let (min, max) = hello.proto;
    match negotiate_version(PROTO_MIN, PROTO_MAX, min, max) {
        Ok(chosen) => Ok(format!("versions {min} to {max}; {chosen} is chosen")),
        Err(error) => fail(error.to_string()),
    }
}

pub(super) fn socket_mode(probe: &Incumbent, log: &Log) -> Seen {
    let (_conn, hello) = probe.greeted("1", log)?;
    let found = std::fs::symlink_metadata(probe.socket.as_path())?;
    let mode = found.mode() & 0o777;
    if !found.file_type().is_socket() {
        return fail("the control path is no socket itself");
    }
    if mode != 0o600 {
        return fail(format!("mode {mode:04o} of pid {}'s socket", hello.pid));
    }
    Ok("mode 0600".into())
}

pub(super) fn holds_the_lock(probe: &Incumbent, log: &Log) -> Seen {
    let dir = probe.dir()?;
    let (_conn, hello) = probe.greeted("1", log)?;
    match lock_state(dir) {
        LockState::Held { pid: Some(pid) } if pid != hello.pid => {
            // A process may hold it through another, which it shares the descriptor with.
            fail(format!("process {pid} holds it, and {} answers", hello.pid))
        }
        LockState::Held { .. } => Ok(format!("it is held, process {} answers", hello.pid)),
        LockState::Free => fail("nobody holds it"),
        LockState::Unknown => skip("who holds it cannot be seen"),
    }
}

pub(super) fn probes_leave_nothing(probe: &Incumbent, log: &Log) -> Seen {
    let (conn, hello) = probe.greeted("1", log)?;
    conn.close();
    let descriptors = || Some(std::fs::read_dir(format!("/proc/{}/fd", hello.pid)).ok()?.count());
    probe.serves(log, Some(hello.pid))?;
    let before = descriptors();
    let mut times = Vec::new();
    for _ in 0..20 {
        times.push(probe.serves(log, Some(hello.pid))?);
    }
    times.sort();
    if times[10] > Duration::from_secs(1) {
        return fail(format!("half of them took longer than {}", seconds(times[10])));
    }
    let longest = seconds(times[19]);
    let Some(before) = before else {
        return Ok(format!("20 answers, the slowest in {longest}"));
    };
    let mut now = before;
    if !until(probe.patience, || {
        now = descriptors().unwrap_or(0);
        now <= before
    }) {
        return fail(format!("it had {before} descriptors before and has {now} now"));
    }
    Ok(format!("20 answers, the slowest in {longest}; it has {now} descriptors, as before"))
}
