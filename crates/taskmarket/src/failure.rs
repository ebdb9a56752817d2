//! Why attempts fail: the stable codes of [`FailTask`](crate::FailTask), by whose making each comes, and what helps.
//!
//! A code is the provider's word, so the blame is only as good as that word: a relay sets it against what other
//! providers make of the same task. A code that is not in the table counts as the provider's fault, or a provider could
//! escape blame by making codes up.
//!
//! Some failures of the requester's making would come again on every host ([`fails_anywhere`]): they follow from what the requester
//! signed. A relay need not spend all attempts on them: it may end a task of which a provider signed such a failure ([`unworkable`]). When
//! it does is its own to say, for a provider may lie. Others come of what the task asks for together with the host's limits, platform and
//! models: another host may take it.

use crate::Address;
use crate::event::Event;
use crate::record::{Failure, Status, TaskRecord};

/// Codes of the requester's making that depend on the host all the same: its limits, its network, and what it can run and fetch.
const HOST_DEPENDENT: &[&str] = &[
    // The schemes that it fetches, the paths and addresses that it opens, and how much it takes.
    "unsupported_scheme",
    "not_allowed",
    "forbidden_address",
    "too_large",
    // Its platform, its engines' models, and how large a result it keeps.
    "image_without_platform",
    "model_not_found",
    "output_too_large",
];

/// By whose making an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blame {
    /// Who wrote the task: it would fail on every host.
    Requester,
    /// The host that tried.
    Provider,
    /// Nobody's for certain: another host may succeed.
    Neither,
}

/// What is known of a code.
struct Known {
    code: &'static str,
    blame: Blame,
    hint: Option<&'static str>,
}

const fn requester(code: &'static str, hint: &'static str) -> Known {
    Known { code, blame: Blame::Requester, hint: Some(hint) }
}

const fn provider(code: &'static str) -> Known {
    Known { code, blame: Blame::Provider, hint: None }
}

const fn neither(code: &'static str, hint: &'static str) -> Known {
    Known { code, blame: Blame::Neither, hint: Some(hint) }
}

/// Every code that this version's programs sign.
const KNOWN: &[Known] = &[
    // Fetching the model and the input.
    requester(
        "bad_reference",
        "write model and input as https://, ipfs://, oci://, artifact:// or file:// references",
    ),
    requester("unsupported_scheme", "name the content by a scheme that the runtime can fetch"),
    requester("not_allowed", "upload the file instead: this host opens no such local path"),
    requester("forbidden_address", "name a public address: hosts fetch nothing from private networks"),
    requester("not_found", "check that the model and the input are still there"),
    requester("unauthorized", "make the content readable without credentials, or upload it"),
    requester("too_large", "make the model or the input smaller, or ask for a host that takes more"),
    requester(
        "hash_mismatch",
        "the content is not what the task pins: pin the new hash, or restore the old content",
    ),
    requester("redirect_loop", "name the final URL"),
    requester("bad_manifest", "the folder's manifest does not fit its files: upload the folder again"),
    requester("content_encoded", "serve the file's own bytes, without content-encoding"),
    requester("unsupported_codec", "store it as raw or dag-pb blocks"),
    requester("unsupported_hash", "store it under SHA-256 CIDs"),
    requester("unsupported_node", "name a file or a folder"),
    requester("bad_block", "store the content again: its blocks are malformed"),
    requester("image_without_platform", "build the image for the hosts' platform, such as linux/amd64"),
    requester("bad_image", "push the image again: its manifest or layers are malformed"),
    neither("unreachable", "check that the source answers, or publish the task again"),
    neither("truncated", "check that the source serves whole files, or publish the task again"),
    neither("no_gateway_served_it", "check that the content is pinned and provided"),
    neither("stalled", "the source was silent for too long: check it, or publish the task again"),
    neither(
        "cache_busy",
        "other tasks take the host's room for fetched files: publish the task again, or choose other hosts",
    ),
    provider("disk_full"),
    provider("io"),
    // Running.
    requester("bad_params", "correct the runtime's parameters (config.params)"),
    requester("bad_model", "name a model or a program that this runtime can run"),
    requester("bad_input", "give the input in the form that this runtime takes"),
    requester("model_not_found", "name a model that providers offer: see GET /v1/models"),
    provider("engine_unavailable"),
    requester("out_of_fuel", "raise the fuel (`run --fuel`, config.params), or give the program less to do"),
    requester("trapped", "the program did what it must not: see its logs"),
    requester("exit_nonzero", "the program ended with an error: see its logs"),
    requester("output_too_large", "write less, or split the work into several tasks"),
    requester("bad_output", "leave one plain file as the result, or plain files and folders"),
    neither("out_of_disk", "write less on the way, or choose hosts that give tasks more room"),
    neither("out_of_memory", "use less memory, or choose hosts that give tasks more"),
    neither("timed_out", "raise max_duration (`run --max-duration`), or ask for faster hosts"),
    neither("image_unavailable", "check that the registry has the image and serves it without credentials"),
    neither("egress_refused", "ask for fewer domains, or choose hosts that grant them"),
    neither("egress_unavailable", "choose hosts that can let tasks out"),
    provider("sandbox_unavailable"),
    provider("cancelled"),
    provider("internal"),
    // The host.
    provider("node_restarted"),
    provider("node_unreachable"),
    provider("node_error"),
    provider("not_begun"),
    provider("result_lost"),
    provider("proof_unsigned"),
    provider("proof_refused"),
    neither("upload_refused", "the relay did not take the result: check its limits"),
];

/// By whose making an attempt failed with this code; the provider's where the code is unknown.
pub fn blame(code: &str) -> Blame {
    known(code).map_or(Blame::Provider, |known| known.blame)
}

/// Whether an attempt that failed with this code would fail on every host: it follows from what the requester signed, and from nothing of
/// the host's. What a source serves, such as `hash_mismatch` and `not_found`, counts: the task names the source.
pub fn fails_anywhere(code: &str) -> bool {
    blame(code) == Blame::Requester && !HOST_DEPENDENT.contains(&code)
}

/// Whether an attempt failed by what the task asks of the host that tried: another may have more, and the same one has no more later.
pub fn is_beyond_host(code: &str) -> bool {
    HOST_DEPENDENT.contains(&code)
}

/// Ends an open task by the serving relay's word, as a provider signed that it fails anywhere. It never moves money: what the chain holds a
/// task's budget for, the requester alone withdraws.
pub fn unworkable(record: &TaskRecord) -> Option<Event> {
    let is_open = record.status() == Status::Open && !record.domain.is_settled();
    (is_open && !record.faults.is_empty()).then_some(Event::Unworkable)
}

/// The last failure whose code two providers signed, each of its own, and by which it fails anywhere.
pub fn agreed(record: &TaskRecord) -> Option<&Failure> {
    agreed_among(record, |_| true)
}

/// The last failure of which this is so, where the words of these providers alone count.
pub fn agreed_among(record: &TaskRecord, counts: impl Fn(&Address) -> bool) -> Option<&Failure> {
    let faults: Vec<_> = record.faults.iter().filter(|fault| counts(&fault.provider)).collect();
    let agree = |fault: &Failure| faults.iter().filter(|other| other.code == fault.code).count() > 1;
    faults.iter().rev().find(|fault| agree(fault)).copied()
}

/// What the requester can do about it, where there is something.
pub fn hint(code: &str) -> Option<&'static str> {
    known(code).and_then(|known| known.hint)
}

/// Whether this version's programs sign the code.
pub fn is_known(code: &str) -> bool {
    known(code).is_some()
}

/// Every code that this version's programs sign.
pub fn codes() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(|known| known.code)
}

fn known(code: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.code == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_told_once_and_can_be_signed() {
        for (index, Known { code, .. }) in KNOWN.iter().enumerate() {
            assert!(KNOWN[index + 1..].iter().all(|other| other.code != *code), "{code} twice");
            assert!(code.len() <= crate::MAX_CODE_BYTES);
            assert!(code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{code}");
        }
    }

    #[test]
    fn nobody_escapes_by_an_unknown_code() {
        assert_eq!(blame("requesters_fault"), Blame::Provider);
        assert_eq!(hint("requesters_fault"), None);
        assert_eq!(
            (blame("out_of_fuel"), blame("io"), blame("truncated")),
            (Blame::Requester, Blame::Provider, Blame::Neither)
        );
        assert!(hint("out_of_fuel").is_some());
    }

    #[test]
    fn what_a_host_is_too_small_for_does_not_fail_anywhere() {
        for code in HOST_DEPENDENT {
            assert_eq!(blame(code), Blame::Requester, "{code}");
            assert!(!fails_anywhere(code) && is_beyond_host(code), "{code}");
        }
        for code in ["out_of_fuel", "bad_input", "bad_model", "hash_mismatch", "trapped"] {
            assert!(fails_anywhere(code) && !is_beyond_host(code), "{code}");
        }
        for code in ["io", "truncated", "unheard_of"] {
            assert!(!fails_anywhere(code) && !is_beyond_host(code), "{code}");
        }
    }
}
