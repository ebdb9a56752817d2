//! What the operating system gives: control groups, folders, the clock.

use std::fs::TryLockError;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::Finding;

/// What containers are limited by.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// Before this no copy of this program existed: 2026-01-01, in seconds since 1970.
const OLDEST_NOW: Duration = Duration::from_secs(1_767_225_600);

/// Files that say that a program keeps the clock: systemd-timesyncd's, chrony's, ntpd's.
const CLOCK_KEEPERS: [&str; 3] =
    ["/run/systemd/timesync/synchronized", "/run/chrony/chronyd.pid", "/run/ntpd.pid"];

/// Which limits the kernel can enforce on containers. `root` is where control groups are mounted.
pub(super) fn limits(root: &Path) -> Finding {
    let (version, missing): (_, Vec<&str>) = match std::fs::read_to_string(root.join("cgroup.controllers")) {
        Ok(controllers) => {
            let has = |name: &&str| !controllers.split_whitespace().any(|known| known == *name);
            ("v2", CONTROLLERS.into_iter().filter(has).collect())
        }
        Err(_) => ("v1", CONTROLLERS.into_iter().filter(|name| !root.join(name).is_dir()).collect()),
    };
    if missing.is_empty() {
        let told = format!("control groups {version}: {} can be limited", CONTROLLERS.join(", "));
        return Finding::ok("limits", told);
    }
    let told = format!(
        "control groups {version}: {} cannot be limited, so containers are not safe; wasm and embed limit themselves",
        missing.join(", ")
    );
    Finding::warn("limits", told, "boot with cgroup v2 and these controllers, or serve without containers")
}

/// Whether users can have user namespaces, which give a container's root no rights on the host. `sys` is where the kernel's settings are.
pub(super) fn user_namespaces(sys: &Path) -> Finding {
    let setting = |path: &str| {
        let text = std::fs::read_to_string(sys.join(path)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let (problem, fix) = if setting("user/max_user_namespaces").is_none_or(|most| most == 0) {
        (
            "the kernel makes none",
            "set the sysctl user.max_user_namespaces to 10000, or boot a kernel with CONFIG_USER_NS",
        )
    } else if setting("kernel/unprivileged_userns_clone") == Some(0) {
        ("only root may make them", "set the sysctl kernel.unprivileged_userns_clone to 1")
    } else if setting("kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        (
            "AppArmor lets few programs make them",
            "set the sysctl kernel.apparmor_restrict_unprivileged_userns to 0",
        )
    } else {
        return Finding::ok("userns", "users can have user namespaces");
    };
    Finding::warn("userns", format!("user namespaces: {problem}, so rootless engines do not work"), fix)
}

/// Whether the kernel can filter system calls. `sys` is where its settings are.
pub(super) fn seccomp(sys: &Path) -> Finding {
    let actions = std::fs::read_to_string(sys.join("kernel/seccomp/actions_avail")).unwrap_or_default();
    if actions.split_whitespace().any(|action| action == "errno") {
        return Finding::ok("seccomp", "the kernel filters system calls");
    }
    let told = "the kernel filters no system calls, so containers are not safe; wasm and embed make none";
    Finding::warn("seccomp", told, "boot a kernel with CONFIG_SECCOMP_FILTER, or serve without containers")
}

/// Whether the data folder can be made, or is there and can be written; nothing is written.
pub(super) fn data_folder(folder: &Path) -> Finding {
    let fix = "give this user a folder of its own by --data";
    let base = existing(folder);
    let writable = rustix::fs::access(base, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK);
    if let Err(error) = writable {
        return Finding::fail("data", format!("{} cannot be written: {error}", base.display()), fix);
    }
    if !base.is_dir() {
        return Finding::fail("data", format!("{} is no folder", base.display()), fix);
    }
    if base != folder {
        return Finding::ok("data", format!("{} will be made in {}", folder.display(), base.display()));
    }
    let lock = std::fs::File::open(folder.join("lock")).map(|lock| lock.try_lock());
    match lock {
        Ok(Err(TryLockError::WouldBlock)) => {
            Finding::ok("data", format!("{} is used by a compute node that runs", folder.display()))
        }
        Ok(Ok(()) | Err(TryLockError::Error(_))) | Err(_) => {
            Finding::ok("data", folder.display().to_string())
        }
    }
}

/// Whether the clock can be trusted: signatures and leases go by it.
pub(super) fn clock() -> Finding {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if since < OLDEST_NOW {
        let fix = "set the clock, and have it kept by systemd-timesyncd or chrony";
        return Finding::fail("clock", "it is set to a time before this program was written", fix);
    }
    match CLOCK_KEEPERS.iter().find(|path| Path::new(path).exists()) {
        Some(path) => Finding::ok("clock", format!("it is kept in time ({path})")),
        None => Finding::warn(
            "clock",
            "nothing seems to keep it in time; relays refuse what is more than five minutes off",
            "run systemd-timesyncd or chrony, unless the host's own hypervisor keeps the clock",
        ),
    }
}

/// The folder, or the nearest one above that exists.
pub(super) fn existing(folder: &Path) -> &Path {
    folder.ancestors().find(|path| !path.as_os_str().is_empty() && path.exists()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn the_kernels_settings_are_judged() {
        let folder = tempfile::tempdir().unwrap();
        let sys = folder.path();
        let set = |path: &str, value: &str| {
            let path = sys.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, value).unwrap();
        };
        assert_eq!((user_namespaces(sys).status, seccomp(sys).status), (Status::Warn, Status::Warn));
        set("user/max_user_namespaces", "0\n");
        assert_eq!(user_namespaces(sys).status, Status::Warn);
        set("user/max_user_namespaces", "127235\n");
        assert_eq!(user_namespaces(sys).status, Status::Ok);
        for (path, bad, good) in [
            ("kernel/unprivileged_userns_clone", "0", "1"),
            ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
        ] {
            set(path, bad);
            let finding = user_namespaces(sys);
            let name = path.split('/').next_back().unwrap();
            assert_eq!((finding.status, finding.fix.unwrap().contains(name)), (Status::Warn, true));
            set(path, good);
            assert_eq!(user_namespaces(sys).status, Status::Ok);
        }
        set("kernel/seccomp/actions_avail", "kill_process trap errno allow\n");
        assert_eq!(seccomp(sys).status, Status::Ok);
    }

    #[test]
    fn both_versions_of_control_groups_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        assert!(limits(root).message.contains("memory, pids, cpu cannot be limited"));
        for name in CONTROLLERS {
            std::fs::create_dir(root.join(name)).unwrap();
        }
        let v1 = limits(root);
        assert_eq!((v1.status, v1.message.contains("v1")), (Status::Ok, true));
        std::fs::write(root.join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
        assert!(limits(root).message.starts_with("control groups v2: memory"));
        std::fs::write(root.join("cgroup.controllers"), "cpuset cpu\n").unwrap();
        let finding = limits(root);
        assert_eq!(finding.status, Status::Warn);
        assert!(finding.message.contains("memory, pids cannot be limited"));
    }

    #[test]
    fn a_folder_can_be_missing_but_not_a_file() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(data_folder(&folder.path().join("a/b")).status, Status::Ok);
        assert!(!folder.path().join("a").exists(), "a check changes nothing");
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert_eq!(data_folder(&folder.path().join("file/b")).status, Status::Fail);
        let lock = std::fs::File::create(folder.path().join("lock")).unwrap();
        lock.try_lock().unwrap();
        assert!(data_folder(folder.path()).message.ends_with("a compute node that runs"));
    }
}
