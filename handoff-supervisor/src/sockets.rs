//! The listeners: bound, or handed over by systemd, by the daemon, or by this process's former binary.
