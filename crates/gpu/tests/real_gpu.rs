//! What NVML says about a real GPU. Elsewhere these tests skip, and say so.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails; one that skips says so"
)]

use std::time::{Duration, Instant};

use gpu::{Inventory, Source, Vendor};

fn nvidia() -> Option<Inventory> {
    let inventory = gpu::detect();
    if inventory.source != Source::Nvml {
        println!("skipped: no NVIDIA GPU here");
        return None;
    }
    Some(inventory)
}

#[test]
fn a_real_gpu_is_read_whole() {
    let Some(inventory) = nvidia() else { return };
    let started = Instant::now();
    let samples = inventory.sample();
    println!("{inventory:#?}\n{samples:#?}\nsampled in {:?}", started.elapsed());
    for (device, sample) in inventory.gpus().zip(&samples).filter(|(d, _)| d.vendor == Some(Vendor::Nvidia)) {
        let uuid = device.uuid.as_deref().unwrap();
        assert!(uuid.starts_with(if device.mig_parent.is_some() { "MIG-" } else { "GPU-" }), "{uuid}");
        assert!(device.vram_mb >= sample.free_vram_mb && sample.free_vram_mb > 0);
        assert!(device.driver.is_some() && device.cuda.is_some() && device.compute_capability.is_some());
        assert!(sample.temperature_c.is_some_and(|celsius| (1..120).contains(&celsius)));
        assert!(sample.foreign_mb(device, |_| false) <= device.vram_mb);
    }
}

#[test]
fn the_watcher_starts_and_stops_in_time() {
    let Some(inventory) = nvidia() else { return };
    let Some(watcher) = inventory.watch() else {
        println!("skipped: no GPU here reports Xid errors");
        return;
    };
    let started = Instant::now();
    drop(watcher);
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}
