//! AMD's GPUs through the files of the `amdgpu` driver under `/sys`.
//!
//! Their meaning: <https://docs.kernel.org/gpu/amdgpu/driver-misc.html> and
//! <https://docs.kernel.org/gpu/amdgpu/thermal.html>. The folder is an argument, so that the tests read a tree of
//! their own.

use std::fs;
use std::path::{Path, PathBuf};

use crate::health::{HOT_C, heat};
use crate::{Device, DeviceKind, Health, Sample, Vendor};

const AMD_VENDOR_ID: &str = "0x1002";
const MIB: u64 = 1 << 20;
/// Graphics built into a processor sets some hundred MiB aside; no task fits in there.
const MIN_VRAM_MB: u64 = 1024;

/// One GPU's folder, `/sys/class/drm/card<N>/device`.
#[derive(Debug, Clone)]
pub(crate) struct Card(PathBuf);

/// The GPUs under `sys` (`/sys` on a real machine), by their card's number.
pub(crate) fn cards(sys: &Path) -> Vec<Card> {
    let entries = fs::read_dir(sys.join("class/drm")).into_iter().flatten().flatten();
    let mut cards: Vec<(u32, Card)> = entries
        .filter_map(|entry| {
            // `card0-DP-1` is a connector.
            let number = entry.file_name().to_str()?.strip_prefix("card")?.parse().ok()?;
            Some((number, Card(entry.path().join("device"))))
        })
        .filter(|(_, card)| card.text("vendor").as_deref() == Some(AMD_VENDOR_ID))
        .filter(|(_, card)| card.number("mem_info_vram_total").is_some_and(|v| v / MIB >= MIN_VRAM_MB))
        .collect();
    cards.sort_by_key(|(number, _)| *number);
    cards.into_iter().map(|(_, card)| card).collect()
}

impl Card {
    /// The GPU as the device at `index`.
    pub(crate) fn device(&self, index: u32, sys: &Path) -> Device {
        let readings = self.sample(index);
        Device {
            kind: DeviceKind::Gpu,
            vendor: Some(Vendor::Amd),
            index,
            name: self.name(),
            uuid: self.text("unique_id").map(|id| format!("GPU-{id}")),
            mig_parent: None,
            vram_mb: self.number("mem_info_vram_total").unwrap_or(0) / MIB,
            free_vram_mb: readings.free_vram_mb,
            power_limit_w: self.hwmon("power1_cap").and_then(watts),
            driver: read(&sys.join("module/amdgpu/version")).or_else(|| Some("amdgpu".to_owned())),
            cuda: None,
            compute_capability: None,
            health: readings.health,
        }
    }

    /// Its live figures, as the device at `index`.
    pub(crate) fn sample(&self, index: u32) -> Sample {
        let vram = self.number("mem_info_vram_total").zip(self.number("mem_info_vram_used"));
        let temperature_c = self.hwmon("temp1_input").and_then(degrees);
        let power = self.hwmon("power1_average").or_else(|| self.hwmon("power1_input"));
        Sample {
            index,
            free_vram_mb: vram.map_or(0, |(total, used)| total.saturating_sub(used) / MIB),
            utilization_percent: self.number("gpu_busy_percent").and_then(|p| u32::try_from(p).ok()),
            temperature_c,
            power_w: power.and_then(watts),
            throttled: Vec::new(),
            processes: Vec::new(),
            health: self.health(vram.is_some(), temperature_c),
        }
    }

    fn health(&self, readable: bool, temperature_c: Option<u32>) -> Health {
        if !readable {
            return Health::Failed { reason: "its memory cannot be read".to_owned() };
        }
        if let Some(count @ 1..) = self.uncorrected_errors() {
            let reason = format!("{count} uncorrected memory errors since the driver was loaded");
            return Health::Degraded { reason };
        }
        heat(temperature_c, self.hwmon("temp1_crit").and_then(degrees).unwrap_or(HOT_C))
    }

    fn name(&self) -> String {
        self.text("product_name").map_or_else(
            || format!("AMD GPU {}", self.text("device").unwrap_or_default()).trim_end().to_owned(),
            |name| if name.starts_with("AMD") { name } else { format!("AMD {name}") },
        )
    }

    /// `ue: 2` in the memory controller's error counts.
    fn uncorrected_errors(&self) -> Option<u64> {
        let counts = self.text("ras/umc_err_count")?;
        counts.lines().find_map(|line| line.strip_prefix("ue:")?.trim().parse().ok())
    }

    /// A sensor's value: `hwmon` holds one folder, whose number changes between boots.
    fn hwmon(&self, name: &str) -> Option<u64> {
        let entries = fs::read_dir(self.0.join("hwmon")).ok()?;
        entries.flatten().find_map(|entry| read(&entry.path().join(name))?.parse().ok())
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    fn text(&self, name: &str) -> Option<String> {
        read(&self.0.join(name))
    }
}

/// The file's text without the white space around it; `None` if it is absent or empty.
fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn degrees(thousandths: u64) -> Option<u32> {
    u32::try_from(thousandths / 1000).ok()
}

fn watts(millionths: u64) -> Option<u32> {
    u32::try_from(millionths / 1_000_000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
    }

    fn mi300(root: &Path) {
        write(
            root,
            &[
                ("module/amdgpu/version", "6.12.12"),
                ("class/drm/card10/device/vendor", "0x1002"),
                ("class/drm/card10/device/device", "0x74a1"),
                ("class/drm/card10/device/product_name", "Instinct MI300X"),
                ("class/drm/card10/device/unique_id", "c1a5e0d2"),
                ("class/drm/card10/device/mem_info_vram_total", "206141652992"),
                ("class/drm/card10/device/mem_info_vram_used", "1073741824"),
                ("class/drm/card10/device/gpu_busy_percent", "42"),
                ("class/drm/card10/device/hwmon/hwmon7/temp1_input", "51000"),
                ("class/drm/card10/device/hwmon/hwmon7/temp1_crit", "100000"),
                ("class/drm/card10/device/hwmon/hwmon7/power1_average", "140500000"),
                ("class/drm/card10/device/hwmon/hwmon7/power1_cap", "750000000"),
                ("class/drm/card10/device/ras/umc_err_count", "ue: 0\nce: 3"),
                ("class/drm/card10-DP-1/status", "connected"),
            ],
        );
    }

    #[test]
    fn a_card_is_read_whole() {
        let root = tempfile::tempdir().unwrap();
        mi300(root.path());
        let cards = cards(root.path());
        assert_eq!(cards.len(), 1);
        let device = cards[0].device(3, root.path());
        assert_eq!((device.index, device.name.as_str()), (3, "AMD Instinct MI300X"));
        assert_eq!((device.vendor, device.uuid.as_deref()), (Some(Vendor::Amd), Some("GPU-c1a5e0d2")));
        assert_eq!((device.vram_mb, device.free_vram_mb), (196_592, 195_568));
        assert_eq!((device.power_limit_w, device.driver.as_deref()), (Some(750), Some("6.12.12")));
        let sample = cards[0].sample(3);
        assert_eq!((sample.index, sample.utilization_percent), (3, Some(42)));
        assert_eq!((sample.temperature_c, sample.power_w), (Some(51), Some(140)));
        assert_eq!(sample.health, Health::Ok);
    }

    #[test]
    fn cards_come_in_their_numbers_order_and_only_large_ones_of_amd() {
        let root = tempfile::tempdir().unwrap();
        mi300(root.path());
        let vram = "17163091968";
        write(
            root.path(),
            &[
                ("class/drm/card2/device/vendor", "0x1002"),
                ("class/drm/card2/device/device", "0x744c"),
                ("class/drm/card2/device/mem_info_vram_total", vram),
                ("class/drm/card2/device/mem_info_vram_used", "0"),
                ("class/drm/card0/device/vendor", "0x1002"),
                ("class/drm/card0/device/mem_info_vram_total", "536870912"),
                ("class/drm/card1/device/vendor", "0x8086"),
                ("class/drm/card1/device/mem_info_vram_total", vram),
                ("class/drm/renderD128/device/vendor", "0x1002"),
            ],
        );
        let names: Vec<_> = cards(root.path()).iter().map(Card::name).collect();
        assert_eq!(names, ["AMD GPU 0x744c", "AMD Instinct MI300X"]);
    }

    #[test]
    fn trouble_shows_in_the_health() {
        let root = tempfile::tempdir().unwrap();
        mi300(root.path());
        let card = &cards(root.path())[0];
        write(root.path(), &[("class/drm/card10/device/hwmon/hwmon7/temp1_input", "100000")]);
        assert!(matches!(card.sample(0).health, Health::Degraded { reason } if reason.contains("100 °C")));
        write(root.path(), &[("class/drm/card10/device/hwmon/hwmon7/temp1_input", "60000")]);
        assert_eq!(card.sample(0).health, Health::Ok);
        write(root.path(), &[("class/drm/card10/device/ras/umc_err_count", "ue: 2\nce: 0")]);
        assert!(matches!(card.sample(0).health, Health::Degraded { reason } if reason.starts_with("2 ")));
        // The driver is unloaded while the node runs.
        fs::remove_dir_all(root.path().join("class")).unwrap();
        let gone = card.sample(0);
        assert!(!gone.health.is_usable() && gone.free_vram_mb == 0);
    }

    #[test]
    fn unreadable_figures_are_absent() {
        let root = tempfile::tempdir().unwrap();
        assert!(cards(root.path()).is_empty());
        mi300(root.path());
        write(
            root.path(),
            &[
                ("class/drm/card10/device/gpu_busy_percent", "-1"),
                ("class/drm/card10/device/hwmon/hwmon7/temp1_input", "hot"),
                ("class/drm/card10/device/hwmon/hwmon7/power1_average", "99999999999999999999"),
                ("class/drm/card10/device/mem_info_vram_used", "999999999999999"),
            ],
        );
        let sample = cards(root.path())[0].sample(0);
        assert_eq!((sample.utilization_percent, sample.temperature_c, sample.power_w), (None, None, None));
        assert_eq!((sample.free_vram_mb, sample.health), (0, Health::Ok));
    }
}
