//! Removing folders that programs filled: however deep they are, and whatever their modes.
//!
//! What a program made can be deeper than a path may be long, than files may be open, and than a stack is high. So
//! folders are not descended into: what lies two levels down is moved up until nothing does. No name is followed
//! that could have become a link meanwhile.

use std::ffi::CString;
use std::fs::Permissions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;
use rustix::path::Arg;

/// Removes a folder with all in it, if it is there. Blocks on the disk.
pub(crate) fn remove_folder(path: &Path) -> io::Result<()> {
    let root = match open(CWD, path) {
        Ok(root) => root,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut moved = 0;
    loop {
        let names = names(&root)?;
        if names.is_empty() {
            break;
        }
        for name in names {
            remove(&root, &name, &mut moved)?;
        }
    }
    std::fs::remove_dir(path)
}

/// Removes one entry of `root`; the folders in it come to lie in `root`.
fn remove(root: &OwnedFd, name: &CString, moved: &mut u64) -> io::Result<()> {
    if unlink(root, name)? {
        return Ok(());
    }
    let folder = open(root, name)?;
    for inner in names(&folder)? {
        if !unlink(&folder, &inner)? {
            // A folder can be moved by those only who may write into it.
            drop(open(&folder, &inner)?);
            lift(&folder, &inner, root, moved)?;
        }
    }
    match unlinkat(root, name, AtFlags::REMOVEDIR) {
        // What a program has added meanwhile is found by the next look.
        Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Moves a folder into `root`, under a name that is free there.
fn lift(from: &OwnedFd, name: &CString, root: &OwnedFd, moved: &mut u64) -> io::Result<()> {
    loop {
        let free = format!("{moved}");
        *moved += 1;
        match renameat(from, name, root, free) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Removes what is no folder. Says whether it is gone.
fn unlink(folder: &OwnedFd, name: &CString) -> io::Result<bool> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        // Some file systems say the second.
        Err(Errno::ISDIR | Errno::PERM) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Opens a folder, which its owner may read and write afterwards.
fn open(parent: impl AsFd, name: impl Arg + Copy) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = openat(parent.as_fd(), name, flags | OFlags::PATH, Mode::empty())?;
    // A handle's own entry: the folder itself, whatever its name leads to by now.
    let itself = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let mode = std::fs::metadata(&itself).map_err(errno)?.permissions().mode();
    if mode & 0o700 != 0o700 {
        std::fs::set_permissions(&itself, Permissions::from_mode(0o700)).map_err(errno)?;
    }
    openat(&handle, c".", flags | OFlags::RDONLY, Mode::empty())
}

fn names(folder: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_leave_can_be_removed() {
        let place = tempfile::tempdir().unwrap();
        let (root, outside) = (place.path().join("root"), place.path().join("outside"));
        std::fs::create_dir_all(root.join("a/b/c")).unwrap();
        std::fs::create_dir_all(root.join("a/0/1")).unwrap();
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::write(outside.join("stays"), "x").unwrap();
        std::fs::write(root.join("0"), "x").unwrap();
        std::fs::write(root.join("a/b/file"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, root.join("a/link")).unwrap();
        for (path, mode) in [("a/b/c", 0o000), ("a/b", 0o300), ("a", 0o500)] {
            std::fs::set_permissions(root.join(path), Permissions::from_mode(mode)).unwrap();
        }
        remove_folder(&root).unwrap();
        assert!(!root.exists() && outside.join("stays").exists());
        remove_folder(&root).unwrap();

        std::os::unix::fs::symlink(&outside, &root).unwrap();
        assert!(remove_folder(&root).is_err(), "it is a link");
    }

    #[test]
    fn no_folder_is_too_deep() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let mut folder = open(CWD, root.as_path()).unwrap();
        // Deeper than any stack of this process, and than it may have files open.
        for _ in 0..20_000 {
            rustix::fs::mkdirat(&folder, c"d", Mode::RWXU).unwrap();
            folder = openat(&folder, c"d", OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        remove_folder(&root).unwrap();
        assert!(!root.exists());
    }
}
