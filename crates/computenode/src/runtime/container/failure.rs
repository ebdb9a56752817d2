//! By whose making a container fails: its program's, its limits', its image's, or this host's.

use bollard::errors::Error;

use super::internal;
use super::spec::Bounds;
use super::streams::Written;
use crate::runtime::{RunCode, RunError};

/// What a program's exit status is after a signal that cannot be ignored.
const KILLED: i64 = 128 + 9;
/// And after the signal for a file that grows beyond its bound.
const FILE_TOO_LARGE: i64 = 128 + 25;

/// What an exit status other than zero means.
pub(super) fn failure(status: i64, killed_for_memory: bool, written: &Written, bounds: &Bounds) -> RunError {
    let tail = String::from_utf8_lossy(&written.stderr);
    let last = tail.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    let separator = if last.is_empty() { "" } else { ": " };
    // Nobody but the kernel kills a container that this node did not end, and it does so for memory.
    if killed_for_memory || status == KILLED {
        let reason = format!("the program was killed; its memory is {} bytes", bounds.memory_bytes);
        return RunError::new(RunCode::OutOfMemory, format!("{reason}{separator}{last}"));
    }
    if status == FILE_TOO_LARGE {
        let reason = format!("the program wrote a file of more than {} bytes", bounds.disk_bytes);
        return RunError::new(RunCode::OutOfDisk, format!("{reason}{separator}{last}"));
    }
    RunError::new(RunCode::ExitNonzero, format!("exit status {status}{separator}{last}"))
}

/// What it means that the engine does not make or start a container: the fault of its program, or of its paths and variables,
/// is the image's, and every other, such as a runtime that is missing, is this host's.
pub(super) fn refused(error: &Error) -> RunError {
    let text = error.to_string();
    let lower = text.to_lowercase();
    if is_programs_fault(&lower) {
        return RunError::new(RunCode::BadModel, format!("the image's program cannot be started: {text}"));
    }
    if is_contents_fault(&lower) {
        return RunError::new(RunCode::BadModel, format!("no container can be made of the image: {text}"));
    }
    internal(format!("the engine does not start the container: {text}"))
}

/// Whether an engine says that there is no program, or that the runtime could not execute it.
fn is_programs_fault(text: &str) -> bool {
    // By Docker and Podman.
    let none = ["no command specified", "no command or entrypoint provided"];
    // By runc, youki and crun. Others' programs are executed too, the runtime itself among them.
    let executing = [
        "container process: exec: ",
        "container process caused: exec: ",
        "container process caused \"exec: ",
    ];
    let executing_in_init = "error during container init: exec: ";
    let crun = ["crun: executable file `", "crun: open executable: ", "crun: exec: "];
    none.iter().chain(&executing).chain([&executing_in_init]).chain(&crun).any(|sign| text.contains(sign))
}

/// Whether an engine says that something in the image is in the way: of what is mounted, of the program's folder, or of its
/// variables.
fn is_contents_fault(text: &str) -> bool {
    // Memory can be mounted wherever there is a folder, and what else is mounted is there: so it is the place that is none.
    let mounts = text.contains("error mounting \"tmpfs\" to rootfs at ")
        || (text.contains(" to rootfs at ") && text.contains("not a directory"));
    // By Podman, by Docker, and by runc.
    let signs = [
        "resolving symlinks for mount destination ",
        " workdir: mkdir ",
        "env fields from image failed to parse",
        "cannot mkdir: ",
        "too many links in ",
        "too many levels of symbolic links",
        "file name too long",
        "error during container init: mkdir ",
        "cwd must be an absolute path",
        "environment variable name can't ",
    ];
    mounts || signs.iter().any(|sign| text.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_in_it_is_the_images_fault() {
        let runc = "OCI runtime create failed: runc create failed: unable to start container process: ";
        for (text, code) in [
            (
                format!("{runc}exec: \"/nope\": stat /nope: no such file or directory: unknown"),
                RunCode::BadModel,
            ),
            (format!("{runc}exec: \"/etc\": permission denied"), RunCode::BadModel),
            (format!("{runc}error during container init: exec: \"/x\": is a directory"), RunCode::BadModel),
            (
                "crun: executable file `/nope` not found in $PATH: No such file or directory".to_owned(),
                RunCode::BadModel,
            ),
            ("No command specified".to_owned(), RunCode::BadModel),
            (
                format!(
                    "{runc}error during container init: error mounting \"tmpfs\" to rootfs at \"/etc/passwd\": \
                     mkdir /srv/merged/etc/passwd: not a directory: unknown"
                ),
                RunCode::BadModel,
            ),
            (
                format!("{runc}error during container init: mkdir /etc/passwd: not a directory"),
                RunCode::BadModel,
            ),
            ("Cannot mkdir: /etc/passwd is not a directory".to_owned(), RunCode::BadModel),
            (
                format!(
                    "{runc}error during container init: environment variable name can't be empty: \"=x\""
                ),
                RunCode::BadModel,
            ),
            (
                format!(
                    "{runc}error during container init: error mounting \"/srv/in\": no such file or directory"
                ),
                RunCode::Internal,
            ),
            (
                format!(
                    "{runc}error during container init: error running hook #0: exec: \"nvidia\": permission denied"
                ),
                RunCode::Internal,
            ),
            ("exec: \"runsc\": executable file not found in $PATH".to_owned(), RunCode::Internal),
            ("fork/exec /usr/bin/runc: no such file or directory".to_owned(), RunCode::Internal),
            ("mkdir /var/lib/containers: permission denied".to_owned(), RunCode::Internal),
        ] {
            let error = Error::DockerResponseServerError { status_code: 500, message: text.clone() };
            assert_eq!(refused(&error).code, code, "{text}");
        }
    }
}
