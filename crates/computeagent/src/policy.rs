//! When the operator wants no tasks for now, and which container images may run.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::Time;
use jiff::tz::TimeZone;
use rpc::node::NodeReport;
use taskmarket::{ContentHash, Task};

use crate::config::Policy;
use crate::host::Host;

/// A part of each day, such as 22-7 or 08:30-17:00UTC, in local time unless it says UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours {
    from: Time,
    to: Time,
    utc: bool,
}

/// Why a text is no part of a day.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write hours such as 22-7, 08:30-17:00 or 22-7UTC")]
pub struct ParseHoursError;

/// Container images that may run: all whose reference begins so, or the one of a digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageRule {
    /// `oci://HOST/PATH`: this repository and all below it.
    Prefix(String),
    /// `sha256:HEX`: this image wherever it comes from, also as an archive.
    Digest(ContentHash),
}

/// Why a text names no images.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write oci://HOST/PATH for a repository and all below it, or sha256:HEX for one image")]
pub struct ParseImageRuleError;

/// When the owner's own use of a GPU keeps tasks away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OwnerUse {
    /// From so much GPU memory of other programs on, in MiB.
    pub vram_mb: Option<u64>,
    /// From so much work of the GPU for other programs on, in percent.
    pub utilization_percent: Option<u32>,
}

/// Why no task is taken for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pause {
    /// A stable word.
    pub(crate) code: &'static str,
    /// The reason.
    pub(crate) reason: String,
}

/// Whether the operator wants no tasks at this moment.
pub(crate) fn pause(policy: &Policy, host: &Host, at: Timestamp) -> Option<Pause> {
    if !policy.hours.is_empty() && !policy.hours.iter().any(|hours| hours.hold(at, &TimeZone::system())) {
        let hours: Vec<String> = policy.hours.iter().map(Hours::to_string).collect();
        let reason = format!("this host takes tasks only at {}", hours.join(", "));
        return Some(Pause { code: "outside_hours", reason });
    }
    if host.owner_uses_gpu {
        return Some(Pause { code: "gpu_in_use", reason: "the GPU's owner uses it".to_owned() });
    }
    None
}

/// Whether a task's container image may run; tasks of other runtimes have none.
pub(crate) fn allows_image(policy: &Policy, task: &Task) -> bool {
    let is_container = task.config.runtime == taskmarket::Runtime::Container;
    let reference = task.model_cid.as_str();
    !is_container
        || policy.images.is_empty()
        || policy.images.iter().any(|rule| rule.allows(reference, &task.model_hash))
}

impl OwnerUse {
    /// Whether other programs use a GPU so much.
    pub(crate) fn is_seen_in(&self, report: &NodeReport) -> bool {
        report.foreign_gpu_use.iter().any(|foreign| {
            self.vram_mb.is_some_and(|limit| foreign.vram_mb >= limit)
                || self.utilization_percent.is_some_and(|limit| foreign.utilization_percent >= limit)
        })
    }
}

impl Hours {
    /// Whether a moment lies in these hours of its day.
    fn hold(&self, at: Timestamp, local: &TimeZone) -> bool {
        let zone = if self.utc { TimeZone::UTC } else { local.clone() };
        let time = zone.to_datetime(at).time();
        if self.from < self.to {
            self.from <= time && time < self.to
        } else {
            time >= self.from || time < self.to
        }
    }
}

impl FromStr for Hours {
    type Err = ParseHoursError;

    fn from_str(text: &str) -> Result<Self, ParseHoursError> {
        let (range, utc) = match text.strip_suffix("UTC").or_else(|| text.strip_suffix("utc")) {
            Some(range) => (range.trim_end(), true),
            None => (text, false),
        };
        let (from, to) = range.split_once('-').ok_or(ParseHoursError)?;
        let (from, to) = (time(from)?, time(to)?);
        if from == to { Err(ParseHoursError) } else { Ok(Self { from, to, utc }) }
    }
}

/// `7`, `07:30` or `24`, which is midnight.
fn time(text: &str) -> Result<Time, ParseHoursError> {
    let (hour, minute) = text.trim().split_once(':').unwrap_or((text.trim(), "0"));
    let number = |text: &str| text.parse::<i8>().map_err(|_| ParseHoursError);
    let (hour, minute) = (number(hour)?, number(minute)?);
    let hour = if (hour, minute) == (24, 0) { 0 } else { hour };
    Time::new(hour, minute, 0, 0).map_err(|_| ParseHoursError)
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let zone = if self.utc { " UTC" } else { "" };
        let (from, to) = (self.from, self.to);
        write!(f, "{:02}:{:02}-{:02}:{:02}{zone}", from.hour(), from.minute(), to.hour(), to.minute())
    }
}

impl ImageRule {
    fn allows(&self, reference: &str, hash: &ContentHash) -> bool {
        match self {
            // A path that leads elsewhere on the way is nobody's repository.
            Self::Prefix(prefix) => reference.strip_prefix(prefix.as_str()).is_some_and(|rest| {
                !rest.contains("..") && (prefix.ends_with('/') || rest.starts_with(['/', ':', '@']))
            }),
            Self::Digest(digest) => {
                hash == digest
                    || reference
                        .strip_suffix(&digest.to_string())
                        .is_some_and(|rest| rest.ends_with("@sha256:"))
            }
        }
    }
}

impl FromStr for ImageRule {
    type Err = ParseImageRuleError;

    fn from_str(text: &str) -> Result<Self, ParseImageRuleError> {
        if let Some(hex) = text.strip_prefix("sha256:") {
            return hex.parse().map(Self::Digest).map_err(|_| ParseImageRuleError);
        }
        let is_prefix =
            text.strip_prefix("oci://").is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'));
        if is_prefix { Ok(Self::Prefix(text.to_owned())) } else { Err(ParseImageRuleError) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_reach_over_midnight() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let hold = |hours: &str, moment: &str, zone: TimeZone| {
            hours.parse::<Hours>().unwrap().hold(at(moment), &zone)
        };
        let east = || TimeZone::fixed(jiff::tz::offset(2));
        for (hours, moment, held) in [
            ("22-7", "2026-06-01T21:00:00Z", true),
            ("22-7", "2026-06-01T04:59:59Z", true),
            ("22-7", "2026-06-01T05:00:00Z", false),
            ("22-7UTC", "2026-06-01T21:00:00Z", false),
            ("22-7 utc", "2026-06-01T22:00:00Z", true),
            ("08:30-17:00", "2026-06-01T06:30:00Z", true),
            ("08:30-17:00", "2026-06-01T06:29:59Z", false),
            ("18-24", "2026-06-01T21:59:59Z", true),
        ] {
            assert_eq!(hold(hours, moment, east()), held, "{hours} at {moment}");
        }
        for wrong in ["", "22", "22-22", "25-7", "7-24:01", "a-b", "-1-7", "0-24"] {
            assert_eq!(wrong.parse::<Hours>(), Err(ParseHoursError), "{wrong}");
        }
        assert_eq!("22-7:05utc".parse::<Hours>().unwrap().to_string(), "22:00-07:05 UTC");
    }

    #[test]
    fn images_are_allowed_by_place_or_by_digest() {
        let digest = "ab".repeat(32);
        let unpinned = ContentHash::UNPINNED;
        let pinned: ContentHash = digest.parse().unwrap();
        for (rule, reference, hash, allowed) in [
            ("oci://ghcr.io/org", "oci://ghcr.io/org/app@sha256:00", &unpinned, true),
            ("oci://ghcr.io/org/app", "oci://ghcr.io/org/app:1", &unpinned, true),
            ("oci://ghcr.io/org", "oci://ghcr.io/organised/app", &unpinned, false),
            ("oci://ghcr.io/org/", "oci://ghcr.io/org/../evil/app", &unpinned, false),
            (&format!("sha256:{digest}"), &format!("oci://x.example/y@sha256:{digest}"), &unpinned, true),
            (&format!("sha256:{digest}"), &format!("oci://x.example/y{digest}"), &unpinned, false),
            (&format!("sha256:{digest}"), "https://x.example/image.tar", &pinned, true),
            (&format!("sha256:{digest}"), "https://x.example/image.tar", &unpinned, false),
        ] {
            let rule: ImageRule = rule.parse().unwrap();
            assert_eq!(rule.allows(reference, hash), allowed, "{rule:?} {reference}");
        }
        for wrong in ["", "oci://", "ghcr.io/org", "sha256:12", "https://x.example"] {
            assert!(wrong.parse::<ImageRule>().is_err(), "{wrong}");
        }
    }
}
