//! The index against a model that keeps a list and looks at each host each time, under random operations.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use scheduler::{Device, Index, Need, NodeKey, Offer};
use taskmarket::{Address, B256, Bytes32, ContentHash, Runtime, Task};

/// A host of the model.
#[derive(Debug, Clone)]
struct Host {
    offer: Offer,
    reserved: u32,
    fresh: u32,
    given: u64,
}

impl Host {
    fn busy(&self) -> u32 {
        self.reserved.max(self.offer.busy + self.fresh)
    }

    fn is_free(&self) -> bool {
        self.offer.accepting && self.busy() < self.offer.slots
    }

    fn fits(&self, task: &Task) -> bool {
        let config = &task.config;
        let split = |name: &str| -> Vec<String> {
            name.to_lowercase().split([' ', '-']).filter(|word| !word.is_empty()).map(Into::into).collect()
        };
        let gpus = self.offer.devices.iter().filter(|device| {
            device.is_gpu
                && device.vram_mb >= config.min_vram
                && split(&config.gpu_type).iter().all(|word| split(&device.name).contains(word))
        });
        let is_served = match task.model_cid.as_str().strip_prefix("model://") {
            Some(model) => self.offer.served.iter().any(|served| served == model),
            None => true,
        };
        is_served
            && self.offer.runtimes.contains(&config.runtime)
            && gpus.count() >= config.gpu_count as usize
    }
}

#[derive(Debug, Default)]
struct Model {
    hosts: Vec<Host>,
    given: u64,
}

impl Model {
    fn host(&mut self, key: &NodeKey) -> Option<&mut Host> {
        self.hosts.iter_mut().find(|host| host.offer.key == *key)
    }

    fn pick(&self, task: &Task, excluded: &[u8]) -> Option<NodeKey> {
        let fits = |host: &&Host| {
            host.is_free() && host.fits(task) && !excluded.contains(&host.offer.key.provider.0[0])
        };
        let order = |host: &&Host| {
            let is_engines = task.model_cid.as_str().starts_with("model://");
            let warm =
                !is_engines && task.model_hash.is_pinned() && host.offer.warm.contains(&task.model_hash);
            let wastes = task.config.gpu_count == 0 && host.offer.devices.iter().any(|device| device.is_gpu);
            // Slots divide 12 each, so that the shares compare as integers.
            let load = host.busy() * 12 / host.offer.slots;
            (!warm, wastes, load, host.given, host.offer.key)
        };
        self.hosts.iter().filter(fits).min_by_key(order).map(|host| host.offer.key)
    }
}

#[derive(Debug, Clone)]
enum Operation {
    Upsert(Offer),
    Remove(NodeKey),
    Reserve(NodeKey),
    PickAndReserve(Box<Task>, Vec<u8>),
    Release(NodeKey),
    SetLoad(NodeKey, u32, u32, Vec<ContentHash>),
    SetAccepting(NodeKey, bool),
}

fn keys() -> impl Strategy<Value = NodeKey> {
    (1_u8..4, 1_u8..4).prop_map(|(provider, node)| NodeKey {
        provider: Address::repeat_byte(provider),
        node_id: Bytes32(B256::repeat_byte(node)),
    })
}

fn models() -> impl Strategy<Value = ContentHash> {
    (0_u8..4).prop_map(|byte| ContentHash(B256::repeat_byte(byte)))
}

fn slots() -> impl Strategy<Value = u32> {
    select(vec![1, 2, 3, 4, 6, 12])
}

fn devices() -> impl Strategy<Value = Device> {
    (
        select(vec!["NVIDIA A100-SXM4", "NVIDIA A10", "AMD MI300", "a100 nvidia sxm4"]),
        select(vec![24, 39, 40, 41, 80]),
        prop::bool::weighted(0.8),
    )
        .prop_map(|(name, vram_mb, is_gpu)| Device { name: name.into(), vram_mb, is_gpu })
}

fn offers() -> impl Strategy<Value = Offer> {
    let runtimes = vec(select(Runtime::ALL.to_vec()), 0..3);
    let served = vec(select(vec!["a".to_owned(), "b".to_owned()]), 0..3);
    let rest = (slots(), 0_u32..4, vec(models(), 0..3), served, prop::bool::weighted(0.8));
    (keys(), vec(devices(), 0..4), runtimes, rest).prop_map(
        |(key, devices, runtimes, (slots, busy, warm, served, accepting))| Offer {
            key,
            devices,
            runtimes,
            slots,
            busy,
            warm,
            served,
            accepting,
        },
    )
}

fn tasks() -> impl Strategy<Value = Task> {
    let kinds = select(vec!["", "A100", "a10", "nvidia", "MI300 amd", "H100"]);
    let places = select(vec!["https://a.example/m", "https://a.example/m", "model://a", "model://b"]);
    (select(Runtime::ALL.to_vec()), kinds, 0_u32..3, select(vec![0, 24, 40, 41]), (models(), places))
        .prop_map(|(runtime, gpu_type, gpu_count, min_vram, (model, place))| {
            let mut task = base_task();
            task.model_cid = place.parse().unwrap();
            task.config.runtime = runtime;
            task.config.gpu_count = gpu_count;
            task.model_hash = model;
            if gpu_count > 0 {
                task.config.gpu_type = gpu_type.into();
                task.config.min_vram = min_vram;
            }
            task
        })
}

fn base_task() -> Task {
    let zero = Address::ZERO.to_string();
    let hash = "00".repeat(32);
    let text = format!(
        r#"{{"requester":"{zero}","model_cid":"https://a.example/m","model_hash":"{hash}","input_cid":"https://a.example/i",
        "input_hash":"{hash}","config":{{"runtime":"embed","params":"{{}}","gpu_type":"","gpu_count":0,"min_vram":0,
        "max_duration":60,"max_attempts":3}},"token":"{zero}","budget":"0","provider_stake":"0","dispute_bond":"0",
        "deadline":"2030-01-01T00:00:00Z","dispute_window":0,"arbiter_window":0,"arbiter":"{zero}","salt":"0x{hash}"}}"#
    );
    serde_json::from_str(&text).unwrap()
}

fn operations() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => offers().prop_map(Operation::Upsert),
        1 => keys().prop_map(Operation::Remove),
        1 => keys().prop_map(Operation::Reserve),
        6 => (tasks(), vec(1_u8..4, 0..2))
            .prop_map(|(task, excluded)| Operation::PickAndReserve(Box::new(task), excluded)),
        3 => keys().prop_map(Operation::Release),
        3 => (keys(), 0_u32..4, slots(), vec(models(), 0..3))
            .prop_map(|(key, busy, slots, warm)| Operation::SetLoad(key, busy, slots, warm)),
        1 => (keys(), any::<bool>()).prop_map(|(key, accepting)| Operation::SetAccepting(key, accepting)),
    ]
}

fn upsert(model: &mut Model, offer: Offer) {
    match model.host(&offer.key) {
        Some(host) => {
            host.offer = offer;
            host.fresh = 0;
        }
        None => model.hosts.push(Host { offer, reserved: 0, fresh: 0, given: 0 }),
    }
}

fn reserve(model: &mut Model, key: &NodeKey) -> bool {
    let given = model.given + 1;
    let Some(host) = model.host(key).filter(|host| host.is_free()) else { return false };
    host.reserved += 1;
    host.fresh += 1;
    host.given = given;
    model.given = given;
    true
}

/// Does the same to both, and compares what they answer.
fn step(index: &mut Index, model: &mut Model, operation: Operation) -> Result<(), TestCaseError> {
    match operation {
        Operation::Upsert(offer) => {
            index.upsert(offer.clone());
            upsert(model, offer);
        }
        Operation::Remove(key) => {
            prop_assert_eq!(index.remove(&key), model.host(&key).is_some());
            model.hosts.retain(|host| host.offer.key != key);
        }
        Operation::Reserve(key) => prop_assert_eq!(index.reserve(&key), reserve(model, &key)),
        Operation::PickAndReserve(task, excluded) => {
            let need = Need::of(&task);
            let picked = index.pick(&need, |key| excluded.contains(&key.provider.0[0]));
            prop_assert_eq!(picked, model.pick(&task, &excluded));
            for (key, why) in index.explain(&need, |key| excluded.contains(&key.provider.0[0]), 100) {
                let host = model.host(&key).unwrap();
                let could = host.is_free() && host.fits(&task) && !excluded.contains(&key.provider.0[0]);
                prop_assert_eq!(why.is_empty(), could, "{:?}", why);
            }
            if let Some(key) = picked {
                prop_assert!(index.reserve(&key) && reserve(model, &key));
            }
        }
        Operation::Release(key) => {
            index.release(&key);
            if let Some(host) = model.host(&key) {
                host.reserved = host.reserved.saturating_sub(1);
                host.fresh = host.fresh.saturating_sub(1);
            }
        }
        Operation::SetLoad(key, busy, slots, warm) => {
            index.set_load(&key, busy, slots, warm.clone());
            if let Some(host) = model.host(&key) {
                host.offer = Offer { busy, slots, warm, ..host.offer.clone() };
                host.fresh = 0;
            }
        }
        Operation::SetAccepting(key, accepting) => {
            index.set_accepting(&key, accepting);
            if let Some(host) = model.host(&key) {
                host.offer.accepting = accepting;
            }
        }
    }
    let totals = index.totals();
    prop_assert_eq!(totals.nodes, model.hosts.len() as u64);
    let busy: u32 = model.hosts.iter().map(|host| host.busy().min(host.offer.slots)).sum();
    prop_assert_eq!(totals.busy, u64::from(busy));
    let gpus = model.hosts.iter().flat_map(|host| &host.offer.devices).filter(|device| device.is_gpu);
    prop_assert_eq!(totals.gpus, gpus.count() as u64);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn the_index_chooses_as_a_scan_would(operations in vec(operations(), 1..120)) {
        let mut index = Index::new();
        let mut model = Model::default();
        for operation in operations {
            step(&mut index, &mut model, operation)?;
        }
        // A host that leaves leaves nothing behind.
        for host in &model.hosts {
            index.remove(&host.offer.key);
        }
        prop_assert_eq!(index.totals(), scheduler::Totals::default());
        let empty =
            "nodes: {}, classes: {}, class_ids: {}, families: {}, family_ids: {}, by_word: {}, free: {}, warm: {}";
        prop_assert!(format!("{index:?}").contains(empty), "{index:?}");
    }
}
