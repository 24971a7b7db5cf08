//! What `check` and `doctor` ask the system: who may do what with a file, what a file system is, who has a
//! socket. Nothing is changed by asking.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use handoff_unix::control::ControlPath;
use handoff_unix::peer::peer_credentials;
use procfs::net::TcpState;
use procfs::process::{FDTarget, all_processes};
use rustix::fs::{Access, AtFlags, CWD, StatVfsMountFlags};
use rustix::io::Errno;

use crate::config::{Address, User};

/// To read, to write, to execute or pass through: as in a file's permissions.
pub(crate) const READ: u32 = 4;
pub(crate) const WRITE: u32 = 2;
pub(crate) const PASS: u32 = 1;

/// How long whoever listens at a socket may take to let a client in.
const CONNECT: Duration = Duration::from_millis(500);

/// What keeps `user` from `wanted` at `path`: it, or a directory on the way to it. None where nothing does, as
/// far as permissions tell.
///
/// # Errors
///
/// It is not there, or this process may not look.
pub(crate) fn denied(user: &User, path: &Path, wanted: u32) -> io::Result<Option<PathBuf>> {
    let path = path.canonicalize()?;
    if user.uid == rustix::process::geteuid().as_raw() && allowed_here(&path, wanted)? {
        return Ok(None);
    }
    let mut on_the_way: Vec<&Path> = path.ancestors().skip(1).collect();
    on_the_way.reverse();
    for directory in on_the_way {
        if !grants(user, directory, PASS)? {
            return Ok(Some(directory.to_owned()));
        }
    }
    Ok((!grants(user, &path, wanted)?).then_some(path))
}

/// What the kernel says of this process.
fn allowed_here(path: &Path, wanted: u32) -> io::Result<bool> {
    let mut access = Access::empty();
    for (bit, flag) in [(READ, Access::READ_OK), (WRITE, Access::WRITE_OK), (PASS, Access::EXEC_OK)]
    {
        access.set(flag, wanted & bit != 0);
    }
    match rustix::fs::accessat(CWD, path, access, AtFlags::EACCESS) {
        Ok(()) => Ok(true),
        // That a file system is read-only is told elsewhere.
        Err(Errno::ROFS) => Ok(true),
        Err(Errno::ACCESS | Errno::PERM) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn grants(user: &User, path: &Path, wanted: u32) -> io::Result<bool> {
    let found = fs::metadata(path)?;
    // What an access control list says is not worked out here: it may well grant it.
    let has_list = rustix::fs::getxattr(path, "system.posix_acl_access", &mut [0_u8; 1024]).is_ok();
    Ok(has_list || permits(user, (found.uid(), found.gid(), found.mode()), found.is_dir(), wanted))
}

fn permits(user: &User, (uid, gid, mode): (u32, u32, u32), is_dir: bool, wanted: u32) -> bool {
    if user.uid == 0 {
        return wanted & PASS == 0 || is_dir || mode & 0o111 != 0;
    }
    let class = if uid == user.uid {
        mode >> 6
    } else if gid == user.gid || user.groups.contains(&gid) {
        mode >> 3
    } else {
        mode
    };
    class & wanted == wanted
}

/// The file system that something is on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FileSystem {
    /// As the kernel calls it: `ext4`.
    pub(crate) kind: String,
    /// Where it is mounted.
    pub(crate) mounted: PathBuf,
    pub(crate) read_only: bool,
    /// Bytes that this user can still write, and the bytes there are.
    pub(crate) bytes: (u64, u64),
    /// Files that can still be made, and how many there can be; zero where there is no limit.
    pub(crate) files: (u64, u64),
}

/// What a kind of file system means for data that one process at a time may write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Family {
    /// On this machine.
    Local,
    /// In memory: gone after a reboot.
    Memory,
    /// Other machines can have it mounted too, and a lock may not be known to all of them.
    Network,
    /// Served by a process: what a lock there means, only that knows.
    Process,
}

impl FileSystem {
    pub(crate) fn family(&self) -> Family {
        match self.kind.as_str() {
            "tmpfs" | "ramfs" | "hugetlbfs" => Family::Memory,
            "nfs" | "nfs4" | "cifs" | "smb3" | "smbfs" | "afs" | "ceph" | "glusterfs"
            | "lustre" | "gfs2" | "ocfs2" | "beegfs" | "gpfs" | "9p" | "coda" | "ncpfs"
            | "pvfs2" => Family::Network,
            "fuseblk" => Family::Local,
            kind if kind.starts_with("fuse") || kind == "virtiofs" => Family::Process,
            _ => Family::Local,
        }
    }
}

/// The file system of what is at `path`.
///
/// # Errors
///
/// It is not there, or cannot be looked at.
pub(crate) fn file_system(path: &Path) -> io::Result<FileSystem> {
    let path = path.canonicalize()?;
    let stat = rustix::fs::statvfs(&path)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let (mounted, kind) =
        mount_of(&mounts, &path).unwrap_or_else(|| ("/".into(), "of an unknown kind".into()));
    Ok(FileSystem {
        kind,
        mounted,
        read_only: stat.f_flag.contains(StatVfsMountFlags::RDONLY),
        bytes: (
            stat.f_bavail.saturating_mul(stat.f_frsize),
            stat.f_blocks.saturating_mul(stat.f_frsize),
        ),
        files: (stat.f_favail, stat.f_files),
    })
}

/// The mount that a path is on, and its kind, in the text of `mountinfo`: the last of those that cover each
/// other.
fn mount_of(mountinfo: &str, path: &Path) -> Option<(PathBuf, String)> {
    let mount = |line: &str| -> Option<(PathBuf, String)> {
        let (before, after) = line.split_once(" - ")?;
        let point = unescape(before.split(' ').nth(4)?);
        Some((point, after.split(' ').next()?.to_owned()))
    };
    let covering = mountinfo.lines().filter_map(mount).filter(|(at, _)| path.starts_with(at));
    covering.max_by_key(|(at, _)| at.components().count())
}

/// Blanks and backslashes stand as `\040` there.
fn unescape(text: &str) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, others)) = rest.split_first() {
        let code = others.get(..3).and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()).filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &others[3..];
            }
            None => {
                bytes.push(*first);
                rest = others;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

/// Who listens at an address, as far as this user can see.
pub(crate) fn holders(address: &Address) -> Vec<u32> {
    let inodes = sockets_at(address);
    let has = |process: &procfs::process::Process| {
        let Ok(fds) = process.fd() else { return false };
        fds.flatten()
            .any(|fd| matches!(fd.target, FDTarget::Socket(inode) if inodes.contains(&inode)))
    };
    if inodes.is_empty() {
        return Vec::new();
    }
    let Ok(processes) = all_processes() else { return Vec::new() };
    processes.flatten().filter(has).filter_map(|found| u32::try_from(found.pid()).ok()).collect()
}

/// The inodes of the sockets there.
pub(crate) fn sockets_at(address: &Address) -> Vec<u64> {
    match address {
        Address::Tcp(wanted) => {
            let (v4, v6) = (procfs::net::tcp(), procfs::net::tcp6());
            let all = v4.into_iter().chain(v6).flatten();
            all.filter(|socket| {
                socket.state == TcpState::Listen && overlap(socket.local_address, *wanted)
            })
            .map(|socket| socket.inode)
            .collect()
        }
        Address::Udp(wanted) => {
            let (v4, v6) = (procfs::net::udp(), procfs::net::udp6());
            let all = v4.into_iter().chain(v6).flatten();
            all.filter(|socket| overlap(socket.local_address, *wanted))
                .map(|socket| socket.inode)
                .collect()
        }
        Address::Unix { path, .. } => {
            let table = fs::read("/proc/net/unix").unwrap_or_default();
            unix_listeners(&table, path)
        }
    }
}

/// Whether sockets at both addresses are in each other's way.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    one.port() == other.port() && (a == b || a.is_unspecified() || b.is_unspecified())
}

/// The listeners with that path, in the text of `/proc/net/unix`: number, count, protocol, flags, type, state,
/// inode, and the path, in which there may be blanks.
fn unix_listeners(table: &[u8], path: &Path) -> Vec<u64> {
    let listener = |line: &[u8]| -> Option<u64> {
        let mut rest = line;
        let mut fields = Vec::new();
        for _ in 0..7 {
            rest = rest.trim_ascii_start();
            let end = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
            let (field, after) = rest.split_at(end);
            fields.push(std::str::from_utf8(field).ok()?);
            rest = after;
        }
        let accepts = u32::from_str_radix(fields[3], 16).ok()? & 0x1_0000 != 0;
        let at = Path::new(OsStr::from_bytes(rest.strip_prefix(b" ")?));
        (accepts && at == path).then(|| fields[6].parse().ok())?
    };
    table.split(|byte| *byte == b'\n').filter_map(listener).collect()
}

/// The process that listens at a Unix socket, as the kernel tells who connects.
///
/// # Errors
///
/// Nobody does, or this process may not connect.
pub(crate) fn listens_at(socket: &Path) -> io::Result<u32> {
    let path = ControlPath::new(socket.into()).map_err(io::Error::other)?;
    Ok(peer_credentials(&path.connect(CONNECT)?)?.pid)
}

/// A process as a person knows it: `nginx (pid 12)`.
pub(crate) fn named(pid: u32) -> String {
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("{} (pid {pid})", name.trim_end()),
        Err(_) => format!("pid {pid}"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn user(uid: u32, groups: &[u32]) -> User {
        User { name: uid.to_string(), uid, gid: groups[0], groups: groups.into() }
    }

    #[test]
    fn permissions_are_those_of_the_first_class_that_fits() {
        let owner = user(7, &[70]);
        let member = user(8, &[80, 70]);
        let other = user(9, &[90]);
        let root = user(0, &[0]);
        let cases = [
            (&owner, 0o700, 7, true),
            (&owner, 0o077, 4, false),
            (&member, 0o750, 5, true),
            (&member, 0o707, 4, false),
            (&other, 0o751, 1, true),
            (&other, 0o751, 2, false),
            (&root, 0o000, 6, true),
            (&root, 0o000, 1, false),
            (&root, 0o100, 1, true),
        ];
        for (user, mode, wanted, expected) in cases {
            let got = permits(user, (7, 70, mode), false, wanted);
            assert_eq!(got, expected, "{user:?} {mode:o} {wanted}");
        }
        assert!(permits(&root, (7, 70, 0), true, PASS), "root passes through any directory");
    }

    #[test]
    fn what_keeps_a_user_out_is_named() {
        let dir = tempfile::Builder::new().prefix("handoff system ").tempdir().unwrap();
        let inner = dir.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let me = User::current();
        assert_eq!(denied(&me, &inner, READ | WRITE | PASS).unwrap(), None);
        let stranger = user(me.uid + 54_321, &[me.gid + 54_321]);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(
            denied(&stranger, &inner, PASS).unwrap(),
            Some(dir.path().canonicalize().unwrap())
        );
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(denied(&stranger, &inner, PASS).unwrap(), None);
        assert_eq!(denied(&stranger, &inner, WRITE).unwrap(), Some(inner.canonicalize().unwrap()));
        assert!(denied(&me, &dir.path().join("none"), READ).is_err());
    }

    #[test]
    fn the_deepest_mount_counts_and_of_two_the_last() {
        let table = "\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:21 / /var rw - xfs /dev/sdb rw
23 22 0:31 / /var/lib/my\\040data rw master:2 - nfs4 host:/data rw
24 22 0:32 / /var/lib/twice rw - ext4 /dev/sdc rw
25 24 0:33 / /var/lib/twice rw - tmpfs none rw
";
        let of = |path: &str| mount_of(table, Path::new(path)).unwrap();
        assert_eq!(of("/etc/x"), ("/".into(), "ext4".into()));
        assert_eq!(of("/variety"), ("/".into(), "ext4".into()));
        assert_eq!(of("/var/log"), ("/var".into(), "xfs".into()));
        assert_eq!(of("/var/lib/my data/kv").0, Path::new("/var/lib/my data"));
        assert_eq!(of("/var/lib/twice").1, "tmpfs");
        assert_eq!(mount_of("garbage", Path::new("/")), None);
    }

    #[test]
    fn file_systems_of_others_are_told_from_local_ones() {
        let kinds = [
            ("ext4", Family::Local),
            ("fuseblk", Family::Local),
            ("tmpfs", Family::Memory),
            ("nfs4", Family::Network),
            ("cifs", Family::Network),
            ("fuse.sshfs", Family::Process),
            ("overlay", Family::Local),
        ];
        for (kind, family) in kinds {
            let zero = (0, 0);
            let kind = kind.to_owned();
            let found = FileSystem {
                kind,
                mounted: "/".into(),
                read_only: false,
                bytes: zero,
                files: zero,
            };
            assert_eq!(found.family(), family, "{}", found.kind);
        }
        let here = file_system(Path::new("/")).unwrap();
        assert_eq!(here.mounted, Path::new("/"));
        assert!(here.bytes.1 > 0);
    }

    #[test]
    fn a_listener_at_a_path_with_a_blank_is_found() {
        let table = b"Num       RefCount Protocol Flags    Type St Inode Path
ffff8c0e: 00000002 00000000 00010000 0001 01   123 /run/my kv/a.sock
ffff8c0e: 00000003 00000000 00000000 0001 03   124 /run/my kv/a.sock
ffff8c0e: 00000002 00000000 00010000 0001 01 12345 @abstract
ffff8c0e: 00000002 00000000 00000000 0002 01   126
";
        assert_eq!(unix_listeners(table, Path::new("/run/my kv/a.sock")), [123]);
        assert_eq!(unix_listeners(table, Path::new("/run/my")), [0_u64; 0]);
    }

    #[test]
    fn who_listens_is_found() {
        let me = std::process::id();
        let dir = tempfile::Builder::new().prefix("handoff system ").tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let unix = UnixListener::bind(&path).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(holders(&Address::Tcp(tcp.local_addr().unwrap())).contains(&me));
        assert!(holders(&Address::Udp(udp.local_addr().unwrap())).contains(&me));
        assert!(holders(&Address::Unix { path: path.clone(), mode: 0 }).contains(&me));
        assert_eq!(listens_at(&path).unwrap(), me);
        drop(unix);
        assert!(holders(&Address::Unix { path: path.clone(), mode: 0 }).is_empty());
        assert!(listens_at(&path).is_err());
    }

    #[test]
    fn addresses_overlap_where_either_is_all() {
        let overlap = |a: &str, b: &str| overlap(a.parse().unwrap(), b.parse().unwrap());
        assert!(overlap("0.0.0.0:80", "127.0.0.1:80"));
        assert!(overlap("[::]:80", "127.0.0.1:80"));
        assert!(!overlap("127.0.0.2:80", "127.0.0.1:80"));
        assert!(!overlap("127.0.0.1:80", "127.0.0.1:81"));
    }
}
