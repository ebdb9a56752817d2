//! What a kind of host can do, and whether that is enough.

use std::collections::BTreeMap;

use taskmarket::Runtime;

use crate::need::words;
use crate::{Exclusion, Need, Offer};

/// What a kind of host can do. Hosts that differ only in the order or spelling of their devices are of one kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Capability {
    gpus: Vec<Gpus>,
    runtimes: Vec<Runtime>,
}

/// Equal GPUs of one host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Gpus {
    words: Vec<String>,
    vram_mb: u64,
    count: u32,
}

impl Capability {
    pub(crate) fn of(offer: &Offer) -> Self {
        let mut gpus = BTreeMap::new();
        for device in offer.devices.iter().filter(|device| device.is_gpu) {
            *gpus.entry((words(&device.name), device.vram_mb)).or_insert(0) += 1;
        }
        let mut runtimes = offer.runtimes.clone();
        runtimes.sort_unstable();
        runtimes.dedup();
        let gpus = gpus.into_iter().map(|((words, vram_mb), count)| Gpus { words, vram_mb, count }).collect();
        Self { gpus, runtimes }
    }

    pub(crate) fn fits(&self, need: &Need) -> bool {
        self.runtimes.contains(&need.runtime)
            && (need.gpu_count == 0
                || self.count(|gpus| gpus.is_named(need) && gpus.vram_mb >= need.min_vram_mb)
                    >= need.gpu_count)
    }

    /// The same without memory: what its family has in common.
    pub(crate) fn without_memory(&self) -> Self {
        let mut gpus: Vec<Gpus> = Vec::new();
        // Those of one name follow each other.
        for next in &self.gpus {
            match gpus.last_mut().filter(|last| last.words == next.words) {
                Some(last) => last.count = last.count.saturating_add(next.count),
                None => gpus.push(Gpus { vram_mb: 0, ..next.clone() }),
            }
        }
        Self { gpus, runtimes: self.runtimes.clone() }
    }

    /// Whether a host fits as far as it can be told [`without_memory`](Self::without_memory).
    pub(crate) fn may_fit(&self, need: &Need) -> bool {
        self.runtimes.contains(&need.runtime)
            && (need.gpu_count == 0 || self.count(|gpus| gpus.is_named(need)) >= need.gpu_count)
    }

    /// Why a host of this kind does not fit; empty if it does.
    pub(crate) fn exclusions(&self, need: &Need) -> Vec<Exclusion> {
        let mut exclusions = Vec::new();
        if !self.runtimes.contains(&need.runtime) {
            exclusions.push(Exclusion::Runtime { wanted: need.runtime });
        }
        exclusions.extend(self.gpu_exclusion(need));
        exclusions
    }

    fn gpu_exclusion(&self, need: &Need) -> Option<Exclusion> {
        if need.gpu_count == 0 {
            return None;
        }
        let named = self.count(|gpus| gpus.is_named(need));
        if named == 0 {
            return Some(Exclusion::NoGpu { wanted: need.gpu_type.clone() });
        }
        if named < need.gpu_count {
            return Some(Exclusion::TooFewGpus { wanted: need.gpu_count, found: named });
        }
        let large = self.count(|gpus| gpus.is_named(need) && gpus.vram_mb >= need.min_vram_mb);
        (large < need.gpu_count).then(|| Exclusion::TooLittleVram {
            wanted_mb: need.min_vram_mb,
            largest_mb: self
                .gpus
                .iter()
                .filter(|gpus| gpus.is_named(need))
                .map(|gpus| gpus.vram_mb)
                .max()
                .unwrap_or(0),
            fitting: large,
            wanted: need.gpu_count,
        })
    }

    pub(crate) fn gpu_count(&self) -> u32 {
        self.count(|_| true)
    }

    pub(crate) fn runtimes(&self) -> &[Runtime] {
        &self.runtimes
    }

    /// The words of its GPUs' names, some perhaps more than once.
    pub(crate) fn words(&self) -> impl Iterator<Item = &String> {
        self.gpus.iter().flat_map(|gpus| &gpus.words)
    }

    fn count(&self, which: impl Fn(&Gpus) -> bool) -> u32 {
        self.gpus.iter().filter(|gpus| which(gpus)).fold(0, |sum, gpus| sum.saturating_add(gpus.count))
    }
}

impl Gpus {
    fn is_named(&self, need: &Need) -> bool {
        need.words.iter().all(|word| self.words.binary_search(word).is_ok())
    }
}
