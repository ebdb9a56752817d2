//! The allocator against a naive model that tries every set of GPUs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use gpu::{AllocateError, Allocator, Allotment, Device, Health, Inventory, Request, Vendor};
use proptest::prelude::*;

fn devices(gpus: &[(&str, u64)]) -> Vec<Device> {
    let device = |(index, (name, vram_mb)): (u32, &(&str, u64))| {
        let mut device = Inventory::declared(*name, *vram_mb).devices.remove(0);
        device.index = index;
        device.vendor = Some(Vendor::Nvidia);
        device.uuid = Some(format!("GPU-{index}"));
        device
    };
    (0..).zip(gpus).map(device).collect()
}

fn request(count: u32, min_vram_mb: u64, name: &str, share: bool) -> Request {
    Request { count: NonZeroU32::new(count).unwrap(), min_vram_mb, name: name.into(), share }
}

fn indices(allotment: &Allotment) -> Vec<u32> {
    allotment.gpus().iter().map(|gpu| gpu.index).collect()
}

fn degraded() -> Health {
    Health::Degraded { reason: "hot".into() }
}

#[test]
fn the_smallest_that_fits_is_given_whole() {
    let mut allocator =
        Allocator::new(&devices(&[("NVIDIA H100 80GB", 80), ("NVIDIA L4", 24), ("NVIDIA L4", 24)]));
    let small = allocator.allocate(&request(1, 20, "", false)).unwrap();
    assert_eq!((indices(&small), small.gpus()[0].vram_mb, small.gpus()[0].whole), (vec![1], 24, true));
    assert_eq!(small.gpus()[0].uuid.as_deref(), Some("GPU-1"));
    let large = allocator.allocate(&request(1, 25, "", false)).unwrap();
    assert_eq!(indices(&large), [0]);
    let busy = allocator.allocate(&request(2, 1, "l4", false)).unwrap_err();
    assert_eq!(busy, AllocateError::Busy { wanted: 2, free: 1, unhealthy: 0 });
    allocator.release(small);
    assert_eq!(indices(&allocator.allocate(&request(2, 1, "l4", false)).unwrap()), [1, 2]);
}

#[test]
fn several_gpus_are_of_one_model() {
    let mut allocator = Allocator::new(&devices(&[("A", 10), ("B", 90), ("B", 90)]));
    assert_eq!(indices(&allocator.allocate(&request(2, 1, "", false)).unwrap()), [1, 2]);
    let never = allocator.allocate(&request(3, 1, "", false)).unwrap_err();
    assert_eq!(never, AllocateError::Never { wanted: 3, fitting: 2 });
}

#[test]
fn names_match_by_words() {
    let mut allocator = Allocator::new(&devices(&[("NVIDIA GeForce RTX 4090", 24)]));
    for name in ["A100", "RTX 409", "RTX 4090 Ti"] {
        assert_eq!(
            allocator.allocate(&request(1, 1, name, true)).unwrap_err().code(),
            "no_such_gpu",
            "{name}"
        );
    }
    for name in ["rtx-4090", "4090 nvidia", ""] {
        assert_eq!(indices(&allocator.allocate(&request(1, 1, name, true)).unwrap()), [0], "{name}");
    }
}

#[test]
fn shares_fill_a_gpu_before_they_break_into_another() {
    let mut allocator = Allocator::new(&devices(&[("A", 24), ("A", 24)]));
    let first = allocator.allocate(&request(1, 10, "", true)).unwrap();
    let second = allocator.allocate(&request(1, 10, "", true)).unwrap();
    let third = allocator.allocate(&request(1, 10, "", true)).unwrap();
    assert_eq!((indices(&first), indices(&second), indices(&third)), (vec![0], vec![0], vec![1]));
    assert!(!third.gpus()[0].whole);
    assert_eq!(allocator.free_mb(), BTreeMap::from([(0, 4), (1, 14)]));
    assert_eq!(allocator.allocate(&request(1, 1, "", false)).unwrap_err().code(), "gpus_busy");
    allocator.release(third);
    assert_eq!(indices(&allocator.allocate(&request(1, 24, "", false)).unwrap()), [1]);
    assert_eq!(allocator.free_mb(), BTreeMap::from([(0, 4), (1, 0)]));
}

#[test]
fn unwell_gpus_and_foreign_memory_are_not_given() {
    let mut allocator = Allocator::new(&devices(&[("A", 24), ("A", 24)]));
    allocator.observe(0, &degraded(), 0);
    allocator.observe(1, &Health::Ok, 20);
    allocator.observe(7, &Health::Ok, 20);
    let busy = allocator.allocate(&request(1, 8, "", true)).unwrap_err();
    assert_eq!(busy, AllocateError::Busy { wanted: 1, free: 0, unhealthy: 1 });
    let whole = allocator.allocate(&request(1, 4, "", false)).unwrap();
    assert_eq!((indices(&whole), whole.gpus()[0].vram_mb), (vec![1], 4));
    allocator.observe(0, &Health::Ok, 0);
    assert_eq!(indices(&allocator.allocate(&request(1, 8, "", true)).unwrap()), [0]);
}

#[test]
fn a_machine_without_a_gpu_never_fits_and_an_empty_share_is_refused() {
    let mut cpu = Inventory::declared("CPU", 0).devices;
    cpu[0].kind = gpu::DeviceKind::Cpu;
    let mut allocator = Allocator::new(&cpu);
    assert_eq!(allocator.allocate(&request(1, 0, "", false)).unwrap_err().code(), "no_such_gpu");
    assert_eq!(allocator.allocate(&request(1, 0, "", true)).unwrap_err().code(), "empty_share");
}

/// What can happen to an allocator.
#[derive(Debug, Clone)]
enum Step {
    Allocate { count: u32, min_vram_mb: u64, name: &'static str, share: bool },
    Release { which: usize },
    Observe { index: u32, well: bool, foreign_mb: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let name = prop_oneof![Just(""), Just("a"), Just("b")];
    prop_oneof![
        3 => (1..4u32, 0..30u64, name, any::<bool>())
            .prop_map(|(count, min_vram_mb, name, share)| Step::Allocate { count, min_vram_mb, name, share }),
        2 => any::<usize>().prop_map(|which| Step::Release { which }),
        1 => (0..6u32, any::<bool>(), 0..30u64)
            .prop_map(|(index, well, foreign_mb)| Step::Observe { index, well, foreign_mb }),
    ]
}

/// GPU, MiB, whole.
type Grant = (usize, u64, bool);

/// Every fact, written down as it is; decisions by trying all sets.
struct Model {
    gpus: Vec<(&'static str, u64)>,
    well: Vec<bool>,
    foreign_mb: Vec<u64>,
    held: Vec<(Allotment, Vec<Grant>)>,
}

impl Model {
    fn given(&self, gpu: usize) -> impl Iterator<Item = &Grant> {
        self.held.iter().flat_map(|(_, grants)| grants).filter(move |grant| grant.0 == gpu)
    }

    fn spare(&self, gpu: usize, min: u64, name: &str, share: bool) -> Option<u64> {
        let (model, vram) = self.gpus[gpu];
        let taken_whole = self.given(gpu).any(|grant| grant.2);
        let taken: u64 = self.given(gpu).map(|grant| grant.1).sum();
        let named = name.is_empty() || name == model;
        if !self.well[gpu] || !named || taken_whole || (!share && taken > 0) {
            return None;
        }
        vram.checked_sub(taken)?.saturating_sub(self.foreign_mb[gpu]).checked_sub(min)
    }

    /// The set with the least memory to spare, the first of equals.
    fn best(&self, count: u32, min: u64, name: &str, share: bool) -> Option<Vec<u32>> {
        let sets = (0..1u32 << self.gpus.len()).filter(|set| set.count_ones() == count);
        let members = |set: u32| (0..self.gpus.len()).filter(move |gpu| set >> gpu & 1 == 1);
        let valued = sets.filter_map(|set| {
            let spare: Option<u64> = members(set).map(|gpu| self.spare(gpu, min, name, share)).sum();
            let model = self.gpus[members(set).next()?].0;
            let alike = members(set).all(|gpu| self.gpus[gpu].0 == model);
            spare.filter(|_| alike).map(|spare| (spare, members(set).map(|gpu| gpu as u32).collect()))
        });
        valued.min().map(|(_, set)| set)
    }
}

proptest! {
    #[test]
    fn it_chooses_as_the_model_does_and_never_gives_more_than_there_is(
        gpus in prop::collection::vec((prop_oneof![Just("a"), Just("b")], 1..40u64), 1..6),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut allocator = Allocator::new(&devices(&gpus));
        let count = gpus.len();
        let mut model = Model { gpus, well: vec![true; count], foreign_mb: vec![0; count], held: Vec::new() };
        for step in steps {
            match step {
                Step::Allocate { count, min_vram_mb, name, share } => {
                    let given = allocator.allocate(&request(count, min_vram_mb, name, share));
                    if share && min_vram_mb == 0 {
                        prop_assert_eq!(given, Err(AllocateError::EmptyShare));
                        continue;
                    }
                    let expected = model.best(count, min_vram_mb, name, share);
                    prop_assert_eq!(given.as_ref().ok().map(indices), expected);
                    if let Ok(allotment) = given {
                        let grant = |gpu: &gpu::AllottedGpu| (gpu.index as usize, gpu.vram_mb, gpu.whole);
                        let grants: Vec<_> = allotment.gpus().iter().map(grant).collect();
                        prop_assert!(grants.iter().all(|(_, mb, whole)| *mb >= min_vram_mb && *whole != share));
                        model.held.push((allotment, grants));
                    }
                }
                Step::Release { which } if !model.held.is_empty() => {
                    let (allotment, _) = model.held.swap_remove(which % model.held.len());
                    allocator.release(allotment);
                }
                Step::Release { .. } => {}
                Step::Observe { index, well, foreign_mb } => {
                    let health = if well { Health::Ok } else { degraded() };
                    allocator.observe(index, &health, foreign_mb);
                    if let Some(known) = model.well.get_mut(index as usize) {
                        *known = well;
                        model.foreign_mb[index as usize] = foreign_mb;
                    }
                }
            }
            for gpu in 0..count {
                let given: u64 = model.given(gpu).map(|grant| grant.1).sum();
                prop_assert!(given <= model.gpus[gpu].1, "GPU {} is over-committed", gpu);
                let holders = model.given(gpu).count();
                prop_assert!(holders <= 1 || model.given(gpu).all(|grant| !grant.2), "a whole GPU is shared");
            }
        }
    }
}
