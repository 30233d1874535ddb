//! Terminals: their size, and making one the controlling terminal.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

pub fn resize(terminal: impl AsFd, width: u16, height: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize through the pointer, which lives until the call returns.
    let r = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &size) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Width and height.
pub fn size(terminal: impl AsFd) -> io::Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize through the pointer, which lives until the call returns.
    let r = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
    if r == 0 { Ok((size.ws_col, size.ws_row)) } else { Err(io::Error::last_os_error()) }
}

/// For a session's leader that has none yet.
pub fn make_controlling(terminal: impl AsFd) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    let r = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// For reading and writing without blocking, in a tokio runtime.
pub fn watch(terminal: std::fs::File) -> io::Result<tokio::io::unix::AsyncFd<std::fs::File>> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(&terminal, FcntlArg::F_GETFL)?);
    fcntl(&terminal, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    // SAFETY: a `File` answers the same descriptor as long as it lives, and owns it: it stays open until the `AsyncFd`,
    // which owns the `File`, has taken it out of the poller.
    Ok(unsafe { tokio::io::unix::AsyncFd::register(terminal) }?)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_terminal_keeps_its_size() {
        let pty = nix::pty::openpty(None, None).unwrap();
        super::resize(&pty.master, 132, 43).unwrap();
        assert_eq!(super::size(&pty.slave).unwrap(), (132, 43));
    }
}
