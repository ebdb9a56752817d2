//! What the long-running programs and the command line share: configuration files, logging, an orderly end,
//! secrets in files, addresses to listen on, whom to trust by TLS, what of others' words and headers goes on, lists in
//! columns, help of command groups, and where data lies by default.

pub mod config_file;
pub mod failure;
pub mod group;
pub mod hop_by_hop;
pub mod listen;
pub mod logging;
pub mod private_file;
pub mod secret;
pub mod shutdown;
pub mod table;
pub mod text;
pub mod tls;

use std::ffi::OsString;
use std::path::PathBuf;

pub use failure::Failure;
pub use listen::{ListenError, bind, parse_listen};
pub use logging::{LogArgs, LogError, LogFormat, init_logging};
pub use secret::{Secret, SecretFileError, constant_time_eq, read_secret_file};
pub use shutdown::{Shutdown, ShutdownArgs, drain};
pub use table::Table;
pub use text::{chain, clean, quote};

/// Where `program` ("relay", "agent", "node") keeps its data unless told otherwise: the folder of that name
/// inside `$ZORAI_HOME`, else inside `$XDG_DATA_HOME/zorai`, else inside `~/.local/share/zorai`.
///
/// Nothing is created. Without a home folder, the answer lies below the working directory.
pub fn default_data_dir(program: &str) -> PathBuf {
    data_root(|name| std::env::var_os(name), std::env::home_dir()).join(program)
}

fn data_root(variable: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> PathBuf {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(root) = set("ZORAI_HOME") {
        return root;
    }
    // The XDG specification says that relative paths are to be ignored.
    if let Some(shared) = set("XDG_DATA_HOME").filter(|path| path.is_absolute()) {
        return shared.join("zorai");
    }
    home.filter(|path| !path.as_os_str().is_empty())
        .map_or_else(|| PathBuf::from(".zorai"), |home| home.join(".local/share/zorai"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(variables: &[(&str, &str)], home: Option<&str>) -> PathBuf {
        data_root(
            |name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value)),
            home.map(PathBuf::from),
        )
    }

    #[test]
    fn the_nearest_setting_decides() {
        let both = [("ZORAI_HOME", "/z"), ("XDG_DATA_HOME", "/x")];
        assert_eq!(root(&both, Some("/h")), PathBuf::from("/z"));
        assert_eq!(root(&both[1..], Some("/h")), PathBuf::from("/x/zorai"));
        assert_eq!(
            root(&[("XDG_DATA_HOME", "relative")], Some("/h")),
            PathBuf::from("/h/.local/share/zorai")
        );
        assert_eq!(root(&[("ZORAI_HOME", "")], Some("/h")), PathBuf::from("/h/.local/share/zorai"));
        assert_eq!(root(&[], None), PathBuf::from(".zorai"));
    }
}
