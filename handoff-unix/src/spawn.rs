//! Starting a process with listeners, and for a successor with a control socket (R13, R14).
//!
//! `posix_spawn` shares the parent's memory until the new program runs: unlike `fork`, its cost
//! does not grow with the size of the parent, and no handler of the parent's runs in the child.

#![allow(unsafe_code, reason = "posix_spawn has no safe wrapper")]

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, Signal};

use crate::inherit::{
    FIRST_FD, HANDOFF_HELLO_MS, HANDOFF_ROLE, HANDOFF_SOCK_FD, LISTEN_FDNAMES, LISTEN_FDS,
    LISTEN_PID, ROLE_SUCCESSOR,
};
use crate::process::{PidFd, ProcessGroup};

/// Where programs are looked for if the child's environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// What a child does not inherit, besides everything that begins with [`OWN_PREFIX`].
const CLEARED: [&str; 6] =
    [LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES, "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];
const OWN_PREFIX: &str = "HANDOFF_";

/// What only [`spawn`] may set: a value of somebody else's would contradict the descriptors.
const RESERVED: [&str; 6] =
    [LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES, HANDOFF_ROLE, HANDOFF_SOCK_FD, HANDOFF_HELLO_MS];

/// What to start and how.
///
/// A program name without a slash is looked for in the `PATH` that the child will have; a
/// relative path with one is relative to this process's directory, whatever `current_dir` says.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The binary.
    pub program: PathBuf,
    /// Its arguments, without the program name.
    pub args: Vec<OsString>,
    /// Variables to add to the environment, or to replace there.
    pub env: Vec<(OsString, OsString)>,
    /// Variables not to inherit.
    pub env_remove: Vec<OsString>,
    /// The directory it starts in, if not this process's.
    pub current_dir: Option<PathBuf>,
    /// Its standard output, if not this process's.
    pub stdout: Option<Arc<OwnedFd>>,
    /// Its standard error, if not this process's.
    pub stderr: Option<Arc<OwnedFd>>,
}

impl Launch {
    /// Starts `program` without arguments, with this process's environment and output.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            env_remove: Vec::new(),
            current_dir: None,
            stdout: None,
            stderr: None,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Keeps a variable from being inherited.
    #[must_use]
    pub fn env_remove(mut self, name: impl Into<OsString>) -> Self {
        self.env_remove.push(name.into());
        self
    }

    /// Sets the directory it starts in.
    #[must_use]
    pub fn current_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.current_dir = Some(dir.into());
        self
    }

    /// Sends its standard output there.
    #[must_use]
    pub fn stdout(mut self, fd: Arc<OwnedFd>) -> Self {
        self.stdout = Some(fd);
        self
    }

    /// Sends its standard error there.
    #[must_use]
    pub fn stderr(mut self, fd: Arc<OwnedFd>) -> Self {
        self.stderr = Some(fd);
        self
    }
}

/// What a process is started as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SpawnRole {
    /// The first daemon; nobody serves yet. It gets no control socket.
    Cold,
    /// The successor of a daemon that serves.
    Successor {
        /// How long it may take to say Hello (C3).
        hello_budget: Duration,
    },
}

/// A process that was started.
///
/// Dropping it does nothing to the process but close its control socket.
#[derive(Debug)]
pub struct Child {
    /// Its pid. It stays its own until it is reaped through [`group`](Self::group).
    pub pid: u32,
    /// A handle to it that can be polled for its exit.
    pub pidfd: PidFd,
    /// The process group it leads, through which it is ended and reaped.
    pub group: ProcessGroup,
    /// Our end of a successor's control socket: non-blocking, close-on-exec, with the sender's
    /// credentials attached to all that is received (C1).
    pub control: Option<UnixStream>,
}

/// Starts a process as the leader of its own group, and passes it listeners and role (R13, R14).
///
/// The child gets the listeners at descriptor 3 and up, in order, with `LISTEN_FDS` and
/// `LISTEN_FDNAMES`, and a successor its control socket right after them. Standard input is
/// `/dev/null`; no other descriptor of this process reaches it, close-on-exec or not. Signals
/// have their default disposition and are unblocked. `O_NONBLOCK` of the listeners is left as it
/// is. The environment is this process's without the variables of service managers and of this
/// protocol (`LISTEN_*`, `NOTIFY_SOCKET`, `WATCHDOG_*`, `HANDOFF_*`), then our own, then
/// [`Launch::env`].
///
/// On return the program runs. Errors name the binary, the reason and what to do; nothing is left
/// behind then.
pub fn spawn(
    launch: &Launch,
    listeners: &[(String, BorrowedFd<'_>)],
    role: SpawnRole,
) -> Result<Child, SpawnError> {
    let fail = |why| SpawnError { program: launch.program.clone(), why };
    let io = |what: &'static str| move |source: io::Error| fail_io(launch, what, source);

    check_names(listeners).map_err(fail)?;
    let env = environment(launch, listeners, role).map_err(fail)?;
    if let Some(dir) = &launch.current_dir {
        let not_a_dir = match std::fs::metadata(dir) {
            Ok(meta) if meta.is_dir() => None,
            Ok(_) => Some(io::ErrorKind::NotADirectory.into()),
            Err(e) => Some(e),
        };
        if let Some(source) = not_a_dir {
            let dir = dir.clone();
            return Err(fail(SpawnProblem::CurrentDir { dir, source }));
        }
    }
    let program = resolve(&launch.program, env.get(OsStr::new("PATH"))).map_err(fail)?;

    let (control, passed_control) = match role {
        SpawnRole::Cold => (None, None),
        SpawnRole::Successor { .. } => {
            let (ours, theirs) = control_pair().map_err(io("make a control socket for"))?;
            (Some(ours), Some(theirs))
        }
    };

    // Duplicates above the range of targets: assigning one target cannot destroy the source of
    // another, whatever numbers the sources have.
    let mut passed: Vec<BorrowedFd<'_>> = listeners.iter().map(|(_, fd)| *fd).collect();
    passed.extend(passed_control.as_ref().map(AsFd::as_fd));
    let end = FIRST_FD + RawFd::try_from(passed.len()).unwrap_or(RawFd::MAX - FIRST_FD);
    let lift = |fd: BorrowedFd<'_>| {
        rustix::io::fcntl_dupfd_cloexec(fd, end)
            .map_err(|e| fail_io(launch, "pass a descriptor to", e.into()))
    };
    let mut moves = Vec::with_capacity(passed.len() + 2);
    for (fd, target) in passed.into_iter().zip(FIRST_FD..) {
        moves.push((lift(fd)?, target));
    }
    for (fd, target) in [(&launch.stdout, 1), (&launch.stderr, 2)] {
        if let Some(fd) = fd {
            moves.push((lift(fd.as_fd())?, target));
        }
    }

    let invalid = |_| fail(SpawnProblem::NulByte);
    let mut actions = FileActions::new().map_err(io("prepare"))?;
    actions.open_null(0).map_err(io("prepare"))?;
    for (source, target) in &moves {
        actions.dup2(source.as_raw_fd(), *target).map_err(io("prepare"))?;
    }
    actions.close_from(end).map_err(io("prepare"))?;
    if let Some(dir) = &launch.current_dir {
        let dir = CString::new(dir.as_os_str().as_bytes()).map_err(invalid)?;
        actions.chdir(&dir).map_err(io("prepare"))?;
    }
    let attributes = Attributes::own_group_default_signals().map_err(io("prepare"))?;

    let path = CString::new(program.as_os_str().as_bytes()).map_err(invalid)?;
    let argv = std::iter::once(launch.program.as_os_str())
        .chain(launch.args.iter().map(OsString::as_os_str))
        .map(|arg| CString::new(arg.as_bytes()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(invalid)?;
    let envp = env
        .iter()
        .map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(invalid)?;

    let pid = posix_spawn(&path, &actions, &attributes, &argv, &envp)
        .map_err(|source| fail(explain(&program, source)))?;
    let pid = pid.unsigned_abs();
    match PidFd::open(pid).and_then(|pidfd| Ok((pidfd, ProcessGroup::of(pid)?))) {
        Ok((pidfd, group)) => Ok(Child { pid, pidfd, group, control }),
        Err(source) => {
            // A child that cannot be watched must not stay.
            if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
                let _ = rustix::process::kill_process_group(pid, Signal::KILL);
                let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            }
            Err(fail_io(launch, "watch", source))
        }
    }
}

/// Makes this process the one that orphaned descendants come to, to be reaped (R14).
///
/// It holds for the whole process until it exits, and is not inherited by children.
pub fn become_subreaper() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Why a process was not started: names the binary, the reason, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {}: {why}", program.display())]
pub struct SpawnError {
    /// The program as it was given.
    pub program: PathBuf,
    /// What is wrong.
    #[source]
    pub why: SpawnProblem,
}

/// What kept a process from being started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnProblem {
    /// There is no such file.
    #[error("{} does not exist; check the path, or install the binary", .0.display())]
    NotFound(PathBuf),
    /// No directory of `PATH` has it.
    #[error("it is in no directory of PATH ({}); give its full path", .0.display())]
    NotInPath(PathBuf),
    /// It is a directory or something else that is not a file.
    #[error("{} is {}; give the path of the binary", .0.display(), if .0.is_dir() { "a directory" } else { "not a file" })]
    NotAFile(PathBuf),
    /// This user may not execute it.
    #[error("{} is not executable by this user; chmod +x it, and check its directory and mount options", .0.display())]
    NotExecutable(PathBuf),
    /// The file is there, but what is to run it is not.
    #[error("the interpreter or dynamic loader that {} asks for does not exist; install it, or rebuild the binary for this system", .0.display())]
    NoInterpreter(PathBuf),
    /// The kernel cannot run it.
    #[error("{} is not in a format this machine can run; rebuild it for this machine, or begin a script with #!", .0.display())]
    BadFormat(PathBuf),
    /// The directory to start in cannot be used.
    #[error("it cannot run in {}: {source}; create that directory, or name another", dir.display())]
    CurrentDir {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A listener has a name that cannot be passed on.
    #[error("the listener name {name:?} {problem}; rename the listener")]
    ListenerName {
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The launch sets a variable that is set here.
    #[error("the variable {0:?} is set by the supervisor; do not set it for the program")]
    ReservedVariable(OsString),
    /// The name of a variable is empty or has an equals sign.
    #[error("{0:?} cannot be the name of an environment variable; rename it")]
    VariableName(OsString),
    /// A path, an argument or a variable has a NUL byte.
    #[error("its path, an argument or a variable has a NUL byte; remove it")]
    NulByte,
    /// The system refused.
    #[error("could not {what} it: {source}; {}", advice(source))]
    Io {
        /// What was to be done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn fail_io(launch: &Launch, what: &'static str, source: io::Error) -> SpawnError {
    SpawnError { program: launch.program.clone(), why: SpawnProblem::Io { what, source } }
}

fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => "raise the limit of open files",
        Some(libc::EAGAIN) => "raise the limit of processes",
        Some(libc::ENOMEM) => "free some memory",
        Some(libc::E2BIG) => "shorten its arguments and environment",
        Some(libc::ETXTBSY) => "wait until the binary has been written, and install by rename",
        _ => "check the system's log and limits",
    }
}

/// What `posix_spawn` meant, for a program that was found before.
fn explain(program: &Path, source: io::Error) -> SpawnProblem {
    let program = program.to_owned();
    match source.raw_os_error() {
        Some(libc::ENOENT) if program.exists() => SpawnProblem::NoInterpreter(program),
        Some(libc::ENOENT) => SpawnProblem::NotFound(program),
        Some(libc::EACCES) => SpawnProblem::NotExecutable(program),
        Some(libc::ENOEXEC) => SpawnProblem::BadFormat(program),
        _ => SpawnProblem::Io { what: "execute", source },
    }
}

fn check_names(listeners: &[(String, BorrowedFd<'_>)]) -> Result<(), SpawnProblem> {
    let mut seen = BTreeSet::new();
    for (name, _) in listeners {
        let twice = (!seen.insert(name.as_str())).then_some("is given twice");
        if let Some(problem) = name_problem(name).or(twice) {
            let name = name.clone();
            return Err(SpawnProblem::ListenerName { name, problem });
        }
    }
    Ok(())
}

/// What is wrong with a listener's name (R13), if anything: it goes into a list with colons.
#[must_use]
pub fn name_problem(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("is empty")
    } else if name.contains(':') {
        Some("has a colon, which separates names")
    } else if name.contains(|c: char| c.is_control()) {
        Some("has a control character")
    } else {
        None
    }
}

fn environment(
    launch: &Launch,
    listeners: &[(String, BorrowedFd<'_>)],
    role: SpawnRole,
) -> Result<BTreeMap<OsString, OsString>, SpawnProblem> {
    let mut env: BTreeMap<OsString, OsString> = env::vars_os()
        .filter(|(name, _)| {
            !CLEARED.iter().any(|cleared| name == cleared)
                && !name.as_bytes().starts_with(OWN_PREFIX.as_bytes())
                && !launch.env_remove.contains(name)
        })
        .collect();
    if !listeners.is_empty() {
        let names: Vec<&str> = listeners.iter().map(|(name, _)| name.as_str()).collect();
        env.insert(LISTEN_FDS.into(), listeners.len().to_string().into());
        env.insert(LISTEN_FDNAMES.into(), names.join(":").into());
    }
    if let SpawnRole::Successor { hello_budget } = role {
        let control = FIRST_FD as usize + listeners.len();
        env.insert(HANDOFF_ROLE.into(), ROLE_SUCCESSOR.into());
        env.insert(HANDOFF_SOCK_FD.into(), control.to_string().into());
        env.insert(
            HANDOFF_HELLO_MS.into(),
            u64::try_from(hello_budget.as_millis()).unwrap_or(u64::MAX).to_string().into(),
        );
    }
    for (name, value) in &launch.env {
        if RESERVED.iter().any(|reserved| name == reserved) {
            return Err(SpawnProblem::ReservedVariable(name.clone()));
        }
        if name.is_empty() || name.as_bytes().contains(&b'=') {
            return Err(SpawnProblem::VariableName(name.clone()));
        }
        env.insert(name.clone(), value.clone());
    }
    Ok(env)
}

/// The file that [`spawn`] executes for `program`, where the child's `PATH` is `path`. Nothing is executed.
///
/// # Errors
///
/// There is no such file, or it is none that this user may execute. It is found here, and not by the
/// system, so that the error can name it.
pub fn resolve(program: &Path, path: Option<&OsString>) -> Result<PathBuf, SpawnProblem> {
    if program.as_os_str().is_empty() || program.as_os_str().as_bytes().contains(&b'/') {
        let program =
            std::path::absolute(program).map_err(|_| SpawnProblem::NotFound(program.to_owned()))?;
        return check_file(&program).map(|()| program);
    }
    let path = path.map_or(OsStr::new(DEFAULT_PATH), OsString::as_os_str);
    let mut unusable = None;
    for dir in env::split_paths(path) {
        // An empty entry is the current directory.
        let Ok(candidate) = std::path::absolute(Path::new(".").join(dir).join(program)) else {
            continue;
        };
        match check_file(&candidate) {
            Ok(()) => return Ok(candidate),
            // In a directory that cannot be searched there may be no such file at all.
            Err(problem @ SpawnProblem::NotExecutable(_))
                if candidate.symlink_metadata().is_ok() =>
            {
                unusable.get_or_insert(problem);
            }
            Err(_) => {}
        }
    }
    Err(unusable.unwrap_or_else(|| {
        SpawnProblem::NotInPath(OsString::from_vec(path.as_bytes().to_vec()).into())
    }))
}

fn check_file(program: &Path) -> Result<(), SpawnProblem> {
    let named = || program.to_owned();
    match std::fs::metadata(program) {
        Ok(meta) if !meta.is_file() => Err(SpawnProblem::NotAFile(named())),
        Ok(meta) if meta.permissions().mode() & 0o111 == 0 => {
            Err(SpawnProblem::NotExecutable(named()))
        }
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            Err(SpawnProblem::NotExecutable(named()))
        }
        Err(e) if is_missing(&e) => Err(SpawnProblem::NotFound(named())),
        Err(source) => Err(SpawnProblem::Io { what: "look at", source }),
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Ours is non-blocking and asks for credentials before the child can have sent anything.
fn control_pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let ours = UnixStream::from(ours);
    ours.set_nonblocking(true)?;
    crate::peer::enable_passcred(&ours)?;
    Ok((ours, theirs))
}

/// `0` or an error number, as the functions of the `posix_spawn` family return.
fn check(errno: libc::c_int) -> io::Result<()> {
    match errno {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// What the child does with its descriptors before it becomes the program.
struct FileActions(libc::posix_spawn_file_actions_t);

impl FileActions {
    fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: init makes a valid value of what it is pointed to, or reports an error.
        unsafe {
            check(libc::posix_spawn_file_actions_init(actions.as_mut_ptr()))?;
            Ok(Self(actions.assume_init()))
        }
    }

    fn open_null(&mut self, target: RawFd) -> io::Result<()> {
        let null = c"/dev/null".as_ptr();
        // SAFETY: the value is initialised; the path is copied.
        check(unsafe {
            libc::posix_spawn_file_actions_addopen(&mut self.0, target, null, libc::O_RDONLY, 0)
        })
    }

    fn dup2(&mut self, source: RawFd, target: RawFd) -> io::Result<()> {
        // SAFETY: the value is initialised.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&mut self.0, source, target) })
    }

    fn close_from(&mut self, first: RawFd) -> io::Result<()> {
        // SAFETY: the value is initialised.
        check(unsafe { libc::posix_spawn_file_actions_addclosefrom_np(&mut self.0, first) })
    }

    fn chdir(&mut self, dir: &CStr) -> io::Result<()> {
        // SAFETY: the value is initialised; the path is copied.
        check(unsafe { libc::posix_spawn_file_actions_addchdir_np(&mut self.0, dir.as_ptr()) })
    }
}

impl Drop for FileActions {
    fn drop(&mut self) {
        // SAFETY: the value is initialised and not used afterwards.
        unsafe { libc::posix_spawn_file_actions_destroy(&mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn own_group_default_signals() -> io::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: init makes a valid value of what it is pointed to, or reports an error.
        let mut attributes = unsafe {
            check(libc::posix_spawnattr_init(attributes.as_mut_ptr()))?;
            Self(attributes.assume_init())
        };
        let attr = &mut attributes.0;
        let flags = libc::POSIX_SPAWN_SETPGROUP
            | libc::POSIX_SPAWN_SETSIGDEF
            | libc::POSIX_SPAWN_SETSIGMASK;
        let mut none = MaybeUninit::uninit();
        let mut all = MaybeUninit::uninit();
        // SAFETY: `attr` is initialised; the signal sets are initialised by the functions that
        // empty and fill them, which cannot fail for valid pointers.
        unsafe {
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigfillset(all.as_mut_ptr());
            check(libc::posix_spawnattr_setflags(attr, flags as libc::c_short))?;
            check(libc::posix_spawnattr_setpgroup(attr, 0))?;
            check(libc::posix_spawnattr_setsigmask(attr, none.as_ptr()))?;
            check(libc::posix_spawnattr_setsigdefault(attr, all.as_ptr()))?;
        }
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: the value is initialised and not used afterwards.
        unsafe { libc::posix_spawnattr_destroy(&mut self.0) };
    }
}

fn posix_spawn(
    path: &CStr,
    actions: &FileActions,
    attributes: &Attributes,
    argv: &[CString],
    envp: &[CString],
) -> io::Result<libc::pid_t> {
    let pointers = |strings: &[CString]| -> Vec<*mut libc::c_char> {
        let strings = strings.iter().map(|s| s.as_ptr().cast_mut());
        strings.chain([ptr::null_mut()]).collect()
    };
    let (argv, envp) = (pointers(argv), pointers(envp));
    let mut pid = 0;
    // SAFETY: all values are initialised, both arrays end with a null pointer and point to
    // strings that live across the call, which does not write to them.
    check(unsafe {
        libc::posix_spawn(
            &raw mut pid,
            path.as_ptr(),
            &raw const actions.0,
            &raw const attributes.0,
            argv.as_ptr(),
            envp.as_ptr(),
        )
    })?;
    Ok(pid)
}
