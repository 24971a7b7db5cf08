//! Listening sockets: bound, described, counted, and brought out of another process.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use handoff_unix::process::{PidFd, Signal};
use handoff_unix::sockets::{
    Kind, Queue, bind_tcp, bind_udp, bind_unix, describe, fetch, inode, queue,
};
use handoff_unix::spawn::{Child, Launch, SpawnRole, spawn};
use rustix::fs::OFlags;
use rustix::io::FdFlags;
use rustix::net::sockopt;
use tempfile::TempDir;

const ANY_PORT: &str = "127.0.0.1:0";

fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("handoff unix ").tempdir().unwrap()
}

fn nonblocking(fd: impl AsFd) -> bool {
    rustix::fs::fcntl_getfl(fd).unwrap().contains(OFlags::NONBLOCK)
}

fn cloexec(fd: impl AsFd) -> bool {
    rustix::io::fcntl_getfd(fd).unwrap().contains(FdFlags::CLOEXEC)
}

/// What is left after a socket has had its kernel's time to take in a connection.
fn settled(fd: impl AsFd, waiting: u32) -> Queue {
    let patience = Instant::now() + Duration::from_secs(10);
    loop {
        let queue = queue(&fd).unwrap().unwrap();
        if queue.waiting == waiting || Instant::now() > patience {
            return queue;
        }
        std::thread::yield_now();
    }
}

fn names(dir: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(dir.path()).unwrap();
    let mut names: Vec<_> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn somaxconn() -> u32 {
    fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap()
}

#[test]
fn a_tcp_listener_says_what_it_is_and_who_waits() {
    let socket = bind_tcp(ANY_PORT.parse().unwrap(), Some(7)).unwrap();
    assert!(nonblocking(&socket) && cloexec(&socket));
    assert!(sockopt::socket_reuseaddr(&socket).unwrap());
    let described = describe(&socket).unwrap();
    assert_eq!((described.kind, described.listening), (Kind::Tcp, true));
    assert_eq!(described.to_string(), format!("tcp {}", described.address));
    let address: SocketAddr = described.address.parse().unwrap();
    assert_ne!(address.port(), 0);

    assert_eq!(queue(&socket).unwrap(), Some(Queue { waiting: 0, backlog: 7 }));
    let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
    assert_eq!(settled(&socket, 3), Queue { waiting: 3, backlog: 7 });
    assert!(!describe(&clients[0]).unwrap().listening);
    assert_eq!(queue(&clients[0]).unwrap(), None, "a connection has no queue");
    let listener = TcpListener::from(socket);
    listener.accept().unwrap();
    assert_eq!(settled(&listener, 2), Queue { waiting: 2, backlog: 7 });

    let taken = bind_tcp(address, None).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AddrInUse);
}

#[test]
fn the_backlog_is_the_systems_maximum_unless_set() {
    let dir = scratch();
    let tcp = bind_tcp(ANY_PORT.parse().unwrap(), None).unwrap();
    let unix = bind_unix(&dir.path().join("sock"), 0o600, None).unwrap();
    for socket in [tcp, unix] {
        assert_eq!(queue(&socket).unwrap(), Some(Queue { waiting: 0, backlog: somaxconn() }));
    }
    let greedy = bind_tcp(ANY_PORT.parse().unwrap(), Some(u32::MAX)).unwrap();
    assert_eq!(queue(&greedy).unwrap().unwrap().backlog, somaxconn());
}

#[test]
fn a_udp_socket_says_what_it_is() {
    let socket = bind_udp(ANY_PORT.parse().unwrap()).unwrap();
    assert!(nonblocking(&socket) && cloexec(&socket));
    let described = describe(&socket).unwrap();
    assert_eq!((described.kind, described.listening), (Kind::Udp, false));
    assert_eq!(described.to_string(), format!("udp {}", described.address));
    assert_eq!(queue(&socket).unwrap(), None);

    let client = UdpSocket::bind(ANY_PORT).unwrap();
    client.send_to(b"hello", &described.address).unwrap();
    let socket = UdpSocket::from(socket);
    socket.set_nonblocking(false).unwrap();
    assert_eq!(socket.recv(&mut [0; 9]).unwrap(), 5);
    let taken = bind_udp(socket.local_addr().unwrap()).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AddrInUse);
}

#[test]
fn an_address_of_version_6_is_bound_as_well() {
    // A machine without it says so.
    match bind_tcp("[::1]:0".parse().unwrap(), None) {
        Ok(socket) => assert!(describe(&socket).unwrap().address.starts_with("[::1]:")),
        Err(error) => println!("not bound: {error}"),
    }
    // An address of documentation is none of this machine's.
    let foreign = bind_tcp("192.0.2.1:0".parse().unwrap(), None).unwrap_err();
    assert_eq!(foreign.kind(), ErrorKind::AddrNotAvailable);
}

#[test]
fn a_unix_listener_says_what_it_is_and_who_waits() {
    let dir = scratch();
    let path = dir.path().join("a socket");
    let socket = bind_unix(&path, 0o666, Some(5)).unwrap();
    assert!(nonblocking(&socket) && cloexec(&socket));
    assert_eq!(names(&dir), ["a socket"]);
    let mode = fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o666, "whatever the umask");
    let described = describe(&socket).unwrap();
    assert_eq!((described.kind, described.listening), (Kind::Unix, true));
    assert_eq!(described.address, path.display().to_string(), "not the staging name");

    assert_eq!(queue(&socket).unwrap(), Some(Queue { waiting: 0, backlog: 5 }));
    let clients: Vec<_> = (0..4).map(|_| UnixStream::connect(&path).unwrap()).collect();
    assert_eq!(queue(&socket).unwrap(), Some(Queue { waiting: 4, backlog: 5 }));
    assert_eq!(queue(&clients[0]).unwrap(), None);
    let listener = UnixListener::from(socket);
    listener.accept().unwrap();
    assert_eq!(queue(&listener).unwrap(), Some(Queue { waiting: 3, backlog: 5 }));
}

#[test]
fn a_stale_unix_socket_is_replaced() {
    let dir = scratch();
    let path = dir.path().join("sock");
    drop(UnixListener::bind(&path).unwrap());
    let before = fs::metadata(&path).unwrap().ino();
    let socket = bind_unix(&path, 0o600, None).unwrap();
    assert_ne!(fs::metadata(&path).unwrap().ino(), before);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"hi").unwrap();
    drop(client);
    let mut text = String::new();
    UnixListener::from(socket).accept().unwrap().0.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hi");
    assert_eq!(names(&dir), ["sock"]);
}

#[test]
fn a_unix_socket_takes_no_place_of_somebody_elses() {
    let dir = scratch();
    let at = |name: &str| dir.path().join(name);
    let alive = UnixListener::bind(at("alive")).unwrap();
    let full = UnixListener::bind(at("full")).unwrap();
    rustix::net::listen(&full, 0).unwrap();
    let _waits = UnixStream::connect(at("full")).unwrap();
    let _datagram = UnixDatagram::bind(at("datagram")).unwrap();
    let _private = UnixListener::bind(at("private")).unwrap();
    fs::set_permissions(at("private"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::write(at("file"), "data").unwrap();
    fs::create_dir(at("directory")).unwrap();
    drop(UnixListener::bind(at("stale")).unwrap());
    std::os::unix::fs::symlink(at("stale"), at("link")).unwrap();
    let before = names(&dir);

    let refused = |name: &str, kind: ErrorKind, text: &str| {
        let error = bind_unix(&at(name), 0o600, None).unwrap_err();
        assert_eq!(error.kind(), kind, "{name}: {error}");
        assert!(error.to_string().contains(text), "{name}: {error}");
    };
    let me = format!("process {} listens at", std::process::id());
    refused("alive", ErrorKind::AddrInUse, &me);
    refused("full", ErrorKind::AddrInUse, "does not accept connections");
    refused("datagram", ErrorKind::AddrInUse, "socket of another type");
    // Root may connect all the same.
    let root = rustix::process::geteuid().is_root();
    refused("private", ErrorKind::AddrInUse, if root { &me } else { "another user has a socket" });
    refused("file", ErrorKind::AlreadyExists, "is a file that is not a socket; remove it");
    refused("directory", ErrorKind::AlreadyExists, "is a directory; remove it");
    refused("link", ErrorKind::AlreadyExists, "is a symbolic link; remove it");
    refused("no/such/directory", ErrorKind::NotFound, "");
    refused(&"x".repeat(100), ErrorKind::InvalidInput, "choose a shorter one");
    refused("file/", ErrorKind::InvalidInput, "does not end in a file name");
    assert_eq!(names(&dir), before);
    assert_eq!(fs::read_to_string(at("file")).unwrap(), "data");
    UnixStream::connect(at("alive")).unwrap();
    drop(alive);
}

#[test]
fn what_is_no_socket_for_a_daemon_is_refused() {
    let dir = scratch();
    let file = fs::File::open("/dev/null").unwrap();
    for error in [inode(&file).unwrap_err(), describe(&file).unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_eq!(error.to_string(), "it is not a socket");
    }
    assert!(queue(&file).is_err());
    let datagram = UnixDatagram::bind(dir.path().join("datagram")).unwrap();
    let error = describe(&datagram).unwrap_err().to_string();
    assert!(error.contains("neither a TCP, a UDP nor a Unix stream socket"), "{error}");

    let bound = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    assert_eq!(describe(&bound).unwrap().to_string(), "tcp 0.0.0.0:0, not listening");
    assert_eq!(queue(&bound).unwrap(), None);
    let (one, _two) = UnixStream::pair().unwrap();
    assert_eq!(describe(&one).unwrap().to_string(), "unix unnamed, not listening");
}

/// A process that has these sockets and does nothing.
fn sleeper(listeners: &[(String, std::os::fd::BorrowedFd<'_>)]) -> Child {
    spawn(&Launch::new("/bin/sleep").arg("1000"), listeners, SpawnRole::Cold).unwrap()
}

fn end(child: &Child) {
    child.group.signal(Signal::KILL).unwrap();
    child.pidfd.wait(None).unwrap();
    assert!(child.group.is_gone());
}

#[test]
fn r10_sockets_come_back_from_the_process_that_has_them() {
    let dir = scratch();
    let path = dir.path().join("sock");
    let tcp = bind_tcp(ANY_PORT.parse().unwrap(), None).unwrap();
    let unix: OwnedFd = UnixListener::bind(&path).unwrap().into();
    let udp = bind_udp(ANY_PORT.parse().unwrap()).unwrap();
    let own = bind_tcp(ANY_PORT.parse().unwrap(), None).unwrap();
    let address = describe(&tcp).unwrap().address;
    let child = sleeper(&[
        ("a".into(), tcp.as_fd()),
        ("b".into(), unix.as_fd()),
        ("c".into(), udp.as_fd()),
    ]);
    let [tcp_inode, unix_inode, udp_inode, own_inode] =
        [&tcp, &unix, &udp, &own].map(|fd| inode(fd).unwrap());
    // From here on the child alone has them.
    drop((tcp, unix, udp));

    let asked = [unix_inode, own_inode, tcp_inode, udp_inode, unix_inode];
    let came = fetch(child.pid, &asked).unwrap();
    let there: Vec<bool> = came.iter().map(Option::is_some).collect();
    // The child has one descriptor of each, and never had our own.
    assert_eq!(there, [true, false, true, true, false]);
    let mut came = came.into_iter().flatten();
    let (unix, tcp, udp) = (came.next().unwrap(), came.next().unwrap(), came.next().unwrap());
    assert_eq!(
        [&unix, &tcp, &udp].map(|fd| inode(fd).unwrap()),
        [unix_inode, tcp_inode, udp_inode]
    );
    assert!([&unix, &tcp, &udp].iter().all(cloexec));
    // R13: each has the mode it had.
    assert!(!nonblocking(&unix) && nonblocking(&tcp) && nonblocking(&udp));
    assert_eq!(describe(&unix).unwrap().address, path.display().to_string());

    // They are the child's, and stay so.
    assert_eq!(fetch(child.pid, &asked).unwrap().iter().flatten().count(), 3);
    end(&child);
    TcpStream::connect(address).unwrap();
    TcpListener::from(tcp).accept().unwrap();
    assert!(fetch(child.pid, &[]).is_err(), "it is gone");
}

#[test]
fn r10_a_process_that_is_not_there_is_said_to_be_so() {
    let child = sleeper(&[]);
    end(&child);
    let error = fetch(child.pid, &[1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(error.to_string(), format!("there is no process {}", child.pid));
    assert_eq!(fetch(0, &[1]).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn r10_who_may_not_look_into_a_process_is_told_why() {
    let own = bind_tcp(ANY_PORT.parse().unwrap(), None).unwrap();
    let child = sleeper(&[("a".into(), own.as_fd())]);
    let asked = [inode(&own).unwrap()];
    let refused: Option<io::Error> = if rustix::process::geteuid().is_root() {
        // A thread of another user, which is what the kernel looks at.
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let nobody = rustix::thread::Uid::from_raw(65534);
                rustix::thread::set_thread_uid(nobody).unwrap();
                fetch(child.pid, &asked).unwrap_err()
            });
            Some(thread.join().unwrap())
        })
    } else if fs::metadata("/proc/1").unwrap().uid() == rustix::process::geteuid().as_raw() {
        None
    } else {
        PidFd::open(1).unwrap();
        Some(fetch(1, &asked).unwrap_err())
    };
    if let Some(error) = refused {
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        let text = error.to_string();
        for part in ["may not take sockets out of process", "; ", "FileDescriptorStoreMax="] {
            assert!(text.contains(part), "{text}");
        }
    }
    end(&child);
}
