//! The CPU as a device, for machines without a GPU.

use crate::{Device, DeviceKind, Health};

/// This machine's CPU.
pub(crate) fn device() -> Device {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    Device {
        kind: DeviceKind::Cpu,
        vendor: None,
        index: 0,
        name: model_name(&cpuinfo).unwrap_or_else(|| format!("CPU ({})", std::env::consts::ARCH)),
        uuid: None,
        mig_parent: None,
        vram_mb: 0,
        free_vram_mb: 0,
        power_limit_w: None,
        driver: None,
        cuda: None,
        compute_capability: None,
        health: Health::Ok,
    }
}

/// The first processor's `model name` in the text of `/proc/cpuinfo`, which Arm kernels leave out.
fn model_name(cpuinfo: &str) -> Option<String> {
    let value = |line: &str| {
        line.split_once(':').filter(|(key, _)| key.trim() == "model name").map(|(_, v)| v.trim().to_owned())
    };
    cpuinfo.lines().find_map(value).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_name_is_found() {
        let x86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel\t\t: 143\nmodel name\t: Intel(R) Xeon(R): 8481C\n\
                   stepping\t: 8\n\nprocessor\t: 1\nmodel name\t: Other\n";
        assert_eq!(model_name(x86).as_deref(), Some("Intel(R) Xeon(R): 8481C"));
    }

    #[test]
    fn a_text_without_one_has_none() {
        for text in
            ["", "processor\t: 0\nBogoMIPS\t: 50.00\n", "model name\n", "model name\t:\n", "\0\u{fffd}:"]
        {
            assert_eq!(model_name(text), None, "{text:?}");
        }
    }
}
