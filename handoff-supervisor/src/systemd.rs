//! What a supervisor says to systemd, and gets from it.
