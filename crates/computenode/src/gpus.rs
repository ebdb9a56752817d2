//! This machine's GPUs: how they are, and which attempt has which.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gpu::{
    AllocateError, Allocator, Allotment, Device, DeviceKind, GpuProcess, Inventory, Request, Sample, Watcher,
};
use rpc::node::GpuUse;
use taskmarket::{Runtime, TaskConfig};
use tokio::task::JoinHandle;

use crate::runtime::Gpu;

/// How long the driver may take to say how the GPUs are.
const SAMPLE_TIMEOUT: Duration = Duration::from_secs(5);

/// The GPUs of this machine. Clones are the same.
#[derive(Clone)]
pub(crate) struct Gpus(Arc<Inner>);

struct Inner {
    inventory: Inventory,
    share: bool,
    state: Mutex<State>,
    /// The driver's answer that is waited for: it is asked one thing at a time, even where it hangs.
    asked: tokio::sync::Mutex<Option<JoinHandle<Vec<Sample>>>>,
    /// Listens for the GPUs' errors as long as this lives. Nobody asks it anything: the lock lets it be shared.
    _watcher: Mutex<Option<Watcher>>,
}

struct State {
    allocator: Allocator,
    /// How many attempts have each GPU.
    holders: BTreeMap<u32, u32>,
    /// What other programs held of each GPU when no attempt had it, in MiB.
    foreign_mb: BTreeMap<u32, u64>,
}

/// The GPUs of one attempt. They are free again once this is dropped.
pub(crate) struct Held {
    gpus: Option<Gpus>,
    allotment: Option<Allotment>,
    list: Vec<Gpu>,
}

/// How the GPUs are at this moment.
pub(crate) struct Health {
    /// Live figures of all devices.
    pub(crate) samples: Vec<Sample>,
    /// Why no task can have a GPU, if none can.
    pub(crate) unhealthy: Option<String>,
    /// What is wrong with single GPUs.
    pub(crate) problems: Vec<String>,
}

impl Gpus {
    pub(crate) fn new(inventory: Inventory, share: bool) -> Self {
        let state = State {
            allocator: Allocator::new(&inventory.devices),
            holders: BTreeMap::new(),
            foreign_mb: BTreeMap::new(),
        };
        let watcher = Mutex::new(inventory.watch());
        let inner = Inner {
            inventory,
            share,
            state: Mutex::new(state),
            asked: Default::default(),
            _watcher: watcher,
        };
        Self(Arc::new(inner))
    }

    /// All devices of this machine.
    pub(crate) fn devices(&self) -> &[Device] {
        &self.0.inventory.devices
    }

    /// Gives an attempt the GPUs that its task asks for.
    ///
    /// A machine that sees no GPU gives none: the agent may have announced one on its operator's word, and runtimes that
    /// keep the GPU to themselves need none given. Only a container is refused there, which would find nothing.
    pub(crate) async fn hold(&self, config: &TaskConfig) -> Result<Held, AllocateError> {
        let nothing = Held { gpus: None, allotment: None, list: Vec::new() };
        let Some(count) = NonZeroU32::new(config.gpu_count) else { return Ok(nothing) };
        let has_gpu = self.0.inventory.gpus().next().is_some();
        // The engine behind `openai` has its GPUs already.
        let gives = config.runtime == Runtime::Container || (has_gpu && config.runtime != Runtime::Openai);
        if !gives {
            return Ok(nothing);
        }
        let share = self.0.share && config.min_vram > 0;
        let name = config.gpu_type.clone();
        self.allocate(Request { count, min_vram_mb: config.min_vram, name, share }).await
    }

    /// Gives all GPUs to whoever measures them; none on a machine without.
    pub(crate) async fn hold_all(&self) -> Result<Held, AllocateError> {
        let count = u32::try_from(self.0.inventory.gpus().count()).unwrap_or(u32::MAX);
        match NonZeroU32::new(count) {
            None => Ok(Held { gpus: None, allotment: None, list: Vec::new() }),
            Some(count) => {
                self.allocate(Request { count, min_vram_mb: 0, name: String::new(), share: false }).await
            }
        }
    }

    async fn allocate(&self, request: Request) -> Result<Held, AllocateError> {
        // What the driver says now counts; where it says nothing, what it said last.
        drop(self.sample().await);
        let mut state = self.state();
        let allotment = state.allocator.allocate(&request)?;
        for gpu in allotment.gpus() {
            *state.holders.entry(gpu.index).or_default() += 1;
        }
        drop(state);
        let list = allotment.gpus().iter().map(|gpu| {
            let device = self.devices().iter().find(|device| device.index == gpu.index);
            let name = device.map_or_else(String::new, |device| device.name.clone());
            Gpu { index: gpu.index, uuid: gpu.uuid.clone(), name }
        });
        Ok(Held { gpus: Some(self.clone()), list: list.collect(), allotment: Some(allotment) })
    }

    /// How the GPUs are, by the driver; or that it does not answer.
    pub(crate) async fn health(&self) -> Health {
        let samples = match self.sample().await {
            Ok(samples) => samples,
            Err(reason) => {
                return Health { samples: Vec::new(), unhealthy: Some(reason), problems: Vec::new() };
            }
        };
        let mut problems = Vec::new();
        let mut offered = 0;
        for (device, sample) in self.0.inventory.devices.iter().zip(&samples) {
            match sample.health.reason() {
                Some(reason) if !sample.health.is_offerable() => {
                    problems.push(format!("GPU {} ({}): {reason}", device.index, device.name));
                }
                _ => offered += 1,
            }
        }
        let unhealthy = (offered == 0).then(|| problems.join("; "));
        Health { samples, unhealthy, problems }
    }

    /// What other programs do with each GPU, but those that are `ours`; nothing of a GPU that an attempt has, where theirs cannot
    /// be told from its.
    pub(crate) fn foreign_use(&self, samples: &[Sample], ours: impl Fn(u32) -> bool) -> Vec<GpuUse> {
        let held: BTreeSet<u32> = self.state().holders.keys().copied().collect();
        let gpus = self.0.inventory.devices.iter().zip(samples);
        gpus.filter(|(device, _)| device.kind == DeviceKind::Gpu)
            .map(|(device, sample)| {
                if held.contains(&device.index) { GpuUse::default() } else { foreign(device, sample, &ours) }
            })
            .collect()
    }

    /// Asks the driver, and tells the allocator what it says.
    async fn sample(&self) -> Result<Vec<Sample>, String> {
        let silent = || "the GPU's driver does not answer".to_owned();
        let answer = async {
            let mut asked = self.0.asked.lock().await;
            let inventory = &self.0.inventory;
            let answer = asked.get_or_insert_with(|| {
                let inventory = inventory.clone();
                tokio::task::spawn_blocking(move || inventory.sample())
            });
            let samples = answer.await;
            *asked = None;
            samples
        };
        let samples = tokio::time::timeout(SAMPLE_TIMEOUT, answer).await;
        let samples = samples.map_err(|_| silent())?.map_err(|_| silent())?;
        let mut state = self.state();
        for (device, sample) in self.0.inventory.devices.iter().zip(&samples) {
            let State { allocator, holders, foreign_mb } = &mut *state;
            // While attempts have a GPU, what they use cannot be told from what others do.
            if !holders.contains_key(&device.index) {
                foreign_mb.insert(device.index, sample.foreign_mb(device, is_ours));
            }
            allocator.observe(
                device.index,
                &sample.health,
                foreign_mb.get(&device.index).copied().unwrap_or(0),
            );
        }
        Ok(samples)
    }

    fn release(&self, allotment: Allotment) {
        let mut state = self.state();
        for gpu in allotment.gpus() {
            if let Some(count) = state.holders.get_mut(&gpu.index) {
                *count -= 1;
                if *count == 0 {
                    state.holders.remove(&gpu.index);
                }
            }
        }
        state.allocator.release(allotment);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic between its parts would at worst leave a GPU unused.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// The GPUs, as a job is told.
    pub(crate) fn list(&self) -> &[Gpu] {
        &self.list
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let (Some(gpus), Some(allotment)) = (&self.gpus, self.allotment.take()) {
            gpus.release(allotment);
        }
    }
}

fn is_ours(pid: u32) -> bool {
    pid == std::process::id()
}

/// What others do with a GPU that no attempt has.
fn foreign(device: &Device, sample: &Sample, ours: &impl Fn(u32) -> bool) -> GpuUse {
    let is_foreign = |process: &&GpuProcess| !is_ours(process.pid) && !ours(process.pid);
    let mut others = sample.processes.iter().filter(is_foreign).peekable();
    if others.peek().is_none() {
        return GpuUse::default();
    }
    // What the driver keeps for itself is nobody's use; where it tells no process's share, all that is used counts.
    let used = device.vram_mb.saturating_sub(sample.free_vram_mb);
    let vram_mb = others.try_fold(0u64, |sum, process| Some(sum.saturating_add(process.used_mb?)));
    // Nor does it tell whose work keeps a GPU busy: not others', for all that is known, where an engine works there.
    let shared = sample.processes.iter().any(|process| ours(process.pid));
    let utilization_percent = sample.utilization_percent.filter(|_| !shared).unwrap_or(0);
    GpuUse { vram_mb: vram_mb.unwrap_or(used), utilization_percent }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(runtime: Runtime, gpu_count: u32, min_vram: u64) -> TaskConfig {
        TaskConfig {
            runtime,
            params: "{}".to_owned(),
            gpu_type: String::new(),
            gpu_count,
            min_vram,
            max_duration: 60,
            max_attempts: 1,
        }
    }

    #[tokio::test]
    async fn a_gpu_works_for_one_attempt_at_a_time() {
        let gpus = Gpus::new(Inventory::declared("Test GPU", 1000), false);
        let wanted = config(Runtime::Container, 1, 400);
        let held = gpus.hold(&wanted).await.ok().unwrap();
        assert_eq!(held.list(), [Gpu { index: 0, uuid: None, name: "Test GPU".to_owned() }]);
        assert_eq!(gpus.hold(&wanted).await.err().unwrap().code(), "gpus_busy");
        assert!(gpus.hold(&config(Runtime::Wasm, 0, 0)).await.ok().unwrap().list().is_empty());
        drop(held);
        assert_eq!(gpus.hold(&wanted).await.ok().unwrap().list().len(), 1);
        assert_eq!(
            gpus.hold(&config(Runtime::Container, 1, 1001)).await.err().unwrap().code(),
            "no_such_gpu"
        );
    }

    #[tokio::test]
    async fn a_gpu_is_shared_where_that_is_allowed() {
        let gpus = Gpus::new(Inventory::declared("Test GPU", 1000), true);
        let wanted = config(Runtime::Container, 1, 400);
        let both = (gpus.hold(&wanted).await.ok().unwrap(), gpus.hold(&wanted).await.ok().unwrap());
        assert_eq!(gpus.hold(&wanted).await.err().unwrap().code(), "gpus_busy");
        drop(both);
        assert!(gpus.state().holders.is_empty());
    }

    #[tokio::test]
    async fn without_a_gpu_only_containers_are_refused() {
        let mut inventory = Inventory::declared("CPU", 0);
        inventory.devices[0].kind = DeviceKind::Cpu;
        let gpus = Gpus::new(inventory, false);
        assert!(gpus.hold(&config(Runtime::Wasm, 1, 0)).await.ok().unwrap().list().is_empty());
        assert_eq!(gpus.hold(&config(Runtime::Container, 1, 0)).await.err().unwrap().code(), "no_such_gpu");
        assert_eq!(gpus.health().await.unhealthy, None);
    }

    #[tokio::test]
    async fn unwell_gpus_are_out_of_offer() {
        let mut inventory = Inventory::declared("Test GPU", 1000);
        let mut hot = inventory.devices[0].clone();
        (hot.index, hot.health) = (1, gpu::Health::Degraded { reason: "too hot".to_owned() });
        inventory.devices.push(hot.clone());
        let health = Gpus::new(inventory.clone(), false).health().await;
        assert_eq!((health.unhealthy, health.problems), (None, vec!["GPU 1 (Test GPU): too hot".to_owned()]));
        inventory.devices = vec![hot];
        let gpus = Gpus::new(inventory, false);
        assert_eq!(gpus.health().await.unhealthy.as_deref(), Some("GPU 1 (Test GPU): too hot"));
        assert_eq!(gpus.hold(&config(Runtime::Container, 1, 0)).await.err().unwrap().code(), "gpus_busy");
    }

    #[test]
    fn the_owners_programs_are_seen() {
        let inventory = Inventory::declared("Test GPU", 1000);
        let (device, mut sample) = (&inventory.devices[0], inventory.sample().remove(0));
        (sample.free_vram_mb, sample.utilization_percent) = (300, Some(90));
        let engines = |pid| pid == 3;
        assert_eq!(
            foreign(device, &sample, &engines),
            GpuUse::default(),
            "what no program uses is the driver's"
        );
        sample.processes = vec![GpuProcess { pid: std::process::id(), used_mb: Some(400) }];
        assert_eq!(foreign(device, &sample, &engines), GpuUse::default(), "what the node uses is its own");
        sample.processes.push(GpuProcess { pid: 3, used_mb: Some(500) });
        assert_eq!(foreign(device, &sample, &engines), GpuUse::default(), "so is what its engines use");
        let mut shared = sample.clone();
        shared.processes.push(GpuProcess { pid: 1, used_mb: Some(200) });
        assert_eq!(foreign(device, &shared, &engines), GpuUse { vram_mb: 200, utilization_percent: 0 });
        sample.processes.pop();
        sample.processes.push(GpuProcess { pid: 1, used_mb: Some(200) });
        assert_eq!(foreign(device, &sample, &engines), GpuUse { vram_mb: 200, utilization_percent: 90 });
        sample.processes.push(GpuProcess { pid: 2, used_mb: None });
        assert_eq!(foreign(device, &sample, &engines).vram_mb, 700);
        assert_eq!(Gpus::new(inventory.clone(), false).foreign_use(&[sample], engines)[0].vram_mb, 700);
    }
}
