//! What NVIDIA's Xid errors say about a GPU.
//!
//! Sources: NVIDIA's Xid catalogue (<https://docs.nvidia.com/deploy/xid-errors/>), and for which of them an
//! application's own mistakes cause, the list that NVIDIA's Kubernetes device plugin passes over.

use crate::Health;

/// What an Xid error with this number makes of the GPU's health. `None` where the application is to blame and
/// the GPU goes on working.
///
/// ```
/// assert!(gpu::xid_verdict(31).is_none());
/// assert!(gpu::xid_verdict(79).is_some_and(|health| !health.is_usable()));
/// ```
pub fn xid_verdict(xid: u64) -> Option<Health> {
    let (failed, what) = match xid {
        // A bad kernel or memory access, a stopped channel and its clean-up, a bad video stream, a kernel that ran
        // too long: the driver ends the application.
        13 | 31 | 43 | 45 | 68 | 109 => return None,
        48 => (true, "an uncorrectable memory error"),
        61 | 62 => (true, "its internal controller halted"),
        63 => (false, "a memory row waits to be remapped; reset the GPU"),
        64 => (true, "a memory row could not be remapped"),
        74 => (true, "an NVLink error"),
        79 => (true, "it fell off the bus"),
        92 => (false, "many corrected memory errors"),
        94 => (false, "a contained memory error; reset the GPU"),
        95 => (true, "an uncontained memory error"),
        119 | 120 => (true, "its system processor does not answer"),
        140 => (true, "an unrecovered memory error"),
        154 => (false, "the driver asks for a reset or a restart"),
        _ => (false, "see NVIDIA's Xid catalogue"),
    };
    let reason = format!("Xid {xid}: {what}");
    Some(if failed { Health::Failed { reason } } else { Health::Degraded { reason } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applications_own_errors_do_not_condemn_the_gpu() {
        for xid in [13, 31, 43, 45, 68, 109] {
            assert_eq!(xid_verdict(xid), None, "{xid}");
        }
    }

    #[test]
    fn errors_of_the_hardware_take_it_out_of_offer() {
        for xid in [48, 64, 74, 79, 95, 119, 120, 140] {
            let health = xid_verdict(xid).unwrap();
            assert!(!health.is_usable() && !health.is_offerable(), "{xid}");
            assert!(health.reason().unwrap().starts_with(&format!("Xid {xid}:")));
        }
        for xid in [63, 92, 94, 999, u64::MAX] {
            let health = xid_verdict(xid).unwrap();
            assert!(health.is_usable() && !health.is_offerable(), "{xid}");
        }
    }
}
