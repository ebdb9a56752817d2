//! Who gets which GPU.
//!
//! The allocator knows what it gave away, what the health of each GPU is and how much of its memory foreign
//! processes hold; it asks nobody. The caller tells it what the samples say ([`Allocator::observe`]) and hands every
//! [`Allotment`] back.
//!
//! **The choice** is the same for the same history: of the GPUs that fit, those with the least memory to spare, so
//! that large pieces stay whole; of equals the first. All GPUs of one allotment are of one model, since a task
//! that splits its work evenly is as slow as the slowest.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use thiserror::Error;

use crate::{Device, DeviceKind, Health};

/// The GPUs of a machine and what of them is given away.
#[derive(Debug)]
pub struct Allocator {
    slots: Vec<Slot>,
    next: u64,
}

/// What a task asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// On how many GPUs.
    pub count: NonZeroU32,
    /// How much memory of each, in MiB, at least. A share gets exactly this much, a whole GPU all of its memory.
    pub min_vram_mb: u64,
    /// Words that the GPU's name must have, in any order and case: `rtx 4090`. Empty fits every GPU.
    pub name: String,
    /// Whether others may use the rest of the GPU's memory.
    pub share: bool,
}

/// What a task was given, until [`Allocator::release`] takes it back. It cannot be cloned, so it is returned once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "what is not released stays taken"]
pub struct Allotment {
    id: u64,
    gpus: Vec<AllottedGpu>,
}

/// A GPU, or a share of one, in an allotment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllottedGpu {
    /// Its place in [`crate::Inventory::devices`].
    pub index: u32,
    /// Its UUID, where it has one.
    pub uuid: Option<String>,
    /// The memory that belongs to the task, in MiB.
    pub vram_mb: u64,
    /// Whether nobody else uses the GPU.
    pub whole: bool,
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AllocateError {
    /// Even with all GPUs idle and healthy this machine could not serve it.
    #[error("this machine has {fitting} GPUs of one model that fit the request for {wanted}")]
    Never {
        /// How many GPUs were asked for.
        wanted: u32,
        /// How many would fit if nothing else ran.
        fitting: u32,
    },
    /// It has to wait: others hold the GPUs, or they are unwell.
    #[error("{free} of the {wanted} GPUs that the request needs are free; {unhealthy} are out of offer")]
    Busy {
        /// How many GPUs were asked for.
        wanted: u32,
        /// How many of one model fit now.
        free: u32,
        /// How many GPUs of the machine are unwell.
        unhealthy: u32,
    },
    /// A share of no memory protects nobody from anybody.
    #[error("a share of a GPU must name its memory")]
    EmptyShare,
}

impl AllocateError {
    /// The error's stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Never { .. } => "no_such_gpu",
            Self::Busy { .. } => "gpus_busy",
            Self::EmptyShare => "empty_share",
        }
    }
}

/// One GPU.
#[derive(Debug)]
struct Slot {
    index: u32,
    uuid: Option<String>,
    name: String,
    words: Vec<String>,
    vram_mb: u64,
    foreign_mb: u64,
    offered: bool,
    grants: Grants,
}

/// What of a GPU is given away, by allotment.
#[derive(Debug)]
enum Grants {
    Whole(u64),
    Shares(BTreeMap<u64, u64>),
}

impl Allocator {
    /// All GPUs among the devices, none given away, nothing held by foreign processes.
    pub fn new(devices: &[Device]) -> Self {
        let slot = |device: &Device| Slot {
            index: device.index,
            uuid: device.uuid.clone(),
            name: device.name.clone(),
            words: words(&device.name),
            vram_mb: device.vram_mb,
            foreign_mb: 0,
            offered: device.health.is_offerable(),
            grants: Grants::Shares(BTreeMap::new()),
        };
        let gpus = devices.iter().filter(|device| device.kind == DeviceKind::Gpu);
        Self { slots: gpus.map(slot).collect(), next: 0 }
    }

    /// Takes note of a GPU's health and of the memory in MiB that processes hold which have no allotment
    /// ([`crate::Sample::foreign_mb`]). What is given away stays so, but an unwell GPU is not given to anyone, nor is memory
    /// that is not there. An index that is no GPU's is passed over.
    pub fn observe(&mut self, index: u32, health: &Health, foreign_mb: u64) {
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.index == index) {
            slot.offered = health.is_offerable();
            slot.foreign_mb = foreign_mb;
        }
    }

    /// Gives a task its GPUs, or nothing.
    ///
    /// # Errors
    /// [`AllocateError`]; it says whether waiting can help.
    pub fn allocate(&mut self, request: &Request) -> Result<Allotment, AllocateError> {
        if request.share && request.min_vram_mb == 0 {
            return Err(AllocateError::EmptyShare);
        }
        let wanted = words(&request.name);
        let chosen = self.choose(request, &wanted).ok_or_else(|| self.refusal(request, &wanted))?;
        let id = self.next;
        self.next += 1;
        let give = |place: usize| {
            let slot = &mut self.slots[place];
            let vram_mb = slot.grant(id, request);
            AllottedGpu { index: slot.index, uuid: slot.uuid.clone(), vram_mb, whole: !request.share }
        };
        Ok(Allotment { id, gpus: chosen.into_iter().map(give).collect() })
    }

    /// Takes an allotment of this allocator back.
    pub fn release(&mut self, allotment: Allotment) {
        for slot in &mut self.slots {
            match &mut slot.grants {
                Grants::Whole(holder) if *holder == allotment.id => {
                    slot.grants = Grants::Shares(BTreeMap::new());
                }
                Grants::Whole(_) => {}
                Grants::Shares(shares) => {
                    shares.remove(&allotment.id);
                }
            }
        }
    }

    /// The memory of each GPU, in MiB, that a share could have now, by the device's index.
    pub fn free_mb(&self) -> BTreeMap<u32, u64> {
        let free = |slot: &Slot| if slot.offered { slot.free_mb() } else { 0 };
        self.slots.iter().map(|slot| (slot.index, free(slot))).collect()
    }

    /// The places of the GPUs to give.
    fn choose(&self, request: &Request, wanted: &[String]) -> Option<Vec<usize>> {
        let count = request.count.get() as usize;
        let mut models: BTreeMap<&str, Vec<(u64, usize)>> = BTreeMap::new();
        for (place, slot) in self.slots.iter().enumerate() {
            if let Some(spare) = slot.spare_mb(request, wanted) {
                models.entry(&slot.name).or_default().push((spare, place));
            }
        }
        let candidates = models.into_values().filter(|slots| slots.len() >= count).map(|mut slots| {
            slots.sort_unstable();
            slots.truncate(count);
            let spare: u128 = slots.iter().map(|(spare, _)| u128::from(*spare)).sum();
            let mut places: Vec<usize> = slots.into_iter().map(|(_, place)| place).collect();
            places.sort_unstable();
            (spare, places)
        });
        candidates.min().map(|(_, places)| places)
    }

    fn refusal(&self, request: &Request, wanted: &[String]) -> AllocateError {
        let most = |fits: &dyn Fn(&Slot) -> bool| {
            let mut models: BTreeMap<&str, u32> = BTreeMap::new();
            for slot in self.slots.iter().filter(|slot| fits(slot)) {
                *models.entry(&slot.name).or_default() += 1;
            }
            models.into_values().max().unwrap_or(0)
        };
        let fitting = most(&|slot| slot.suits(wanted) && slot.vram_mb >= request.min_vram_mb);
        if fitting < request.count.get() {
            return AllocateError::Never { wanted: request.count.get(), fitting };
        }
        AllocateError::Busy {
            wanted: request.count.get(),
            free: most(&|slot| slot.spare_mb(request, wanted).is_some()),
            unhealthy: self.slots.iter().filter(|slot| !slot.offered).count() as u32,
        }
    }
}

impl Allotment {
    /// The GPUs, by index; never empty.
    pub fn gpus(&self) -> &[AllottedGpu] {
        &self.gpus
    }
}

impl Slot {
    /// The memory left over if the request were served here; `None` if it cannot be.
    fn spare_mb(&self, request: &Request, wanted: &[String]) -> Option<u64> {
        let idle = matches!(&self.grants, Grants::Shares(shares) if shares.is_empty());
        if !self.offered || !self.suits(wanted) || (!request.share && !idle) {
            return None;
        }
        self.free_mb().checked_sub(request.min_vram_mb)
    }

    fn suits(&self, wanted: &[String]) -> bool {
        wanted.iter().all(|word| self.words.contains(word))
    }

    fn free_mb(&self) -> u64 {
        let given = match &self.grants {
            Grants::Whole(_) => self.vram_mb,
            Grants::Shares(shares) => shares.values().sum(),
        };
        self.vram_mb.saturating_sub(given).saturating_sub(self.foreign_mb)
    }

    /// Notes the grant and tells its memory.
    fn grant(&mut self, id: u64, request: &Request) -> u64 {
        match &mut self.grants {
            Grants::Shares(shares) if request.share => {
                shares.insert(id, request.min_vram_mb);
                request.min_vram_mb
            }
            Grants::Shares(_) | Grants::Whole(_) => {
                let free = self.free_mb();
                self.grants = Grants::Whole(id);
                free
            }
        }
    }
}

/// The words of a GPU's name: runs of letters and digits, in lower case.
fn words(name: &str) -> Vec<String> {
    let words = name.split(|letter: char| !letter.is_alphanumeric());
    words.filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}
