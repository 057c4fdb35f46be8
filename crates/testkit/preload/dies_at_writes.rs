//! Loaded into a program before its libraries (`LD_PRELOAD`), ends it at its writes to the disk: the n-th life of a program ends at its n-th
//! write (`pwrite`, `fsync`, `fdatasync`, `rename`), as `kill -9` would just before it. So every place between two writes is met in the end, and
//! the program that is tested is the one that people run. `SWORN_DIES` names a file; it begins when that file is there, and the file's
//! length is the number of lives.
#![allow(missing_docs, reason = "the symbols are the C library's")]

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes that this life has left; before the beginning, all.
static LEFT: AtomicU64 = AtomicU64::new(u64::MAX);

fn life() -> Option<u64> {
    let path = std::env::var_os("SWORN_DIES")?;
    let mut file = std::fs::OpenOptions::new().append(true).open(path).ok()?;
    let lives = file.metadata().ok()?.len();
    file.write_all(b".").ok()?;
    Some(lives + 1)
}

fn writes() {
    if LEFT.load(Ordering::Relaxed) == u64::MAX {
        let Some(life) = life() else { return };
        LEFT.store(life, Ordering::Relaxed);
    }
    if LEFT.fetch_sub(1, Ordering::Relaxed) == 1 {
        // SAFETY: no memory is touched.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(
    fd: libc::c_int,
    buffer: *const libc::c_void,
    count: libc::size_t,
    offset: libc::off64_t,
) -> libc::ssize_t {
    writes();
    // SAFETY: the caller's.
    unsafe { libc::syscall(libc::SYS_pwrite64, fd, buffer, count, offset) as libc::ssize_t }
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(fd: libc::c_int) -> libc::c_int {
    writes();
    // SAFETY: the caller's.
    unsafe { libc::syscall(libc::SYS_fsync, fd) as libc::c_int }
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(fd: libc::c_int) -> libc::c_int {
    writes();
    // SAFETY: the caller's.
    unsafe { libc::syscall(libc::SYS_fdatasync, fd) as libc::c_int }
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(from: *const libc::c_char, to: *const libc::c_char) -> libc::c_int {
    writes();
    // SAFETY: the caller's.
    unsafe { libc::syscall(libc::SYS_renameat2, libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0) as libc::c_int }
}
