//! Which host gets a task, case by case.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use scheduler::{Device, Exclusion, Index, Need, NodeKey, Offer};
use taskmarket::{Address, B256, Bytes32, ContentHash, Runtime, Task};

const MODEL: ContentHash = ContentHash(B256::repeat_byte(9));

fn key(provider: u8, node: u8) -> NodeKey {
    NodeKey { provider: Address::repeat_byte(provider), node_id: Bytes32(B256::repeat_byte(node)) }
}

fn gpu(name: &str, vram_mb: u64) -> Device {
    Device { name: name.into(), vram_mb, is_gpu: true }
}

fn cpu() -> Device {
    Device { name: "AMD EPYC A100".into(), vram_mb: 0, is_gpu: false }
}

fn offer(key: NodeKey, devices: Vec<Device>) -> Offer {
    Offer {
        key,
        devices,
        runtimes: vec![Runtime::Wasm, Runtime::Embed],
        slots: 2,
        busy: 0,
        warm: vec![],
        served: vec![],
        accepting: true,
    }
}

fn need(gpu_type: &str, gpu_count: u32, min_vram: u64) -> Need {
    need_with_model(gpu_type, gpu_count, min_vram, ContentHash::UNPINNED)
}

fn need_with_model(gpu_type: &str, gpu_count: u32, min_vram: u64, model: ContentHash) -> Need {
    let zero = Address::ZERO.to_string();
    let task = format!(
        r#"{{"requester":"{zero}","model_cid":"https://a.example/m","model_hash":"{model}","input_cid":"https://a.example/i",
        "input_hash":"{unpinned}","config":{{"runtime":"embed","params":"{{}}","gpu_type":"{gpu_type}","gpu_count":{gpu_count},
        "min_vram":{min_vram},"max_duration":60,"max_attempts":3}},"token":"{zero}","budget":"0","provider_stake":"0",
        "dispute_bond":"0","deadline":"2030-01-01T00:00:00Z","dispute_window":0,"arbiter_window":0,"arbiter":"{zero}",
        "salt":"0x{salt}"}}"#,
        unpinned = ContentHash::UNPINNED,
        salt = "00".repeat(32),
    );
    let task: Task = serde_json::from_str(&task).unwrap();
    Need::of(&task)
}

/// What a task needs whose model an engine has to serve.
fn need_served(model: &str) -> Need {
    let zero = Address::ZERO.to_string();
    let task = format!(
        r#"{{"requester":"{zero}","model_cid":"model://{model}","model_hash":"{unpinned}","input_cid":"https://a.example/i",
        "input_hash":"{unpinned}","config":{{"runtime":"embed","params":"{{}}","gpu_type":"","gpu_count":0,
        "min_vram":0,"max_duration":60,"max_attempts":3}},"token":"{zero}","budget":"0","provider_stake":"0",
        "dispute_bond":"0","deadline":"2030-01-01T00:00:00Z","dispute_window":0,"arbiter_window":0,"arbiter":"{zero}",
        "salt":"0x{salt}"}}"#,
        unpinned = ContentHash::UNPINNED,
        salt = "00".repeat(32),
    );
    Need::of(&serde_json::from_str(&task).unwrap())
}

fn pick(index: &Index, need: &Need) -> Option<NodeKey> {
    index.pick(need, |_| false)
}

fn words_of(index: &Index, need: &Need) -> Vec<String> {
    let explained = index.explain(need, |_| false, 10);
    explained.into_iter().flat_map(|(_, why)| why).map(|why| why.to_string()).collect()
}

#[test]
fn gpu_types_match_by_words() {
    let mut index = Index::new();
    index.upsert(offer(key(1, 1), vec![gpu("NVIDIA A100-SXM4-80GB", 81_920)]));
    for fits in ["A100", "a100", "nvidia a100", "80GB A100", "A100-SXM4", ""] {
        assert_eq!(pick(&index, &need(fits, 1, 0)), Some(key(1, 1)), "{fits}");
    }
    for other in ["A10", "A1000", "100", "A100 40GB", "H100", "SXM", "É100"] {
        assert_eq!(pick(&index, &need(other, 1, 0)), None, "{other}");
    }
}

#[test]
fn words_must_meet_on_one_gpu_and_a_cpu_is_none() {
    let mut index = Index::new();
    index.upsert(offer(key(1, 1), vec![gpu("NVIDIA A100", 40_960), gpu("AMD MI300", 196_608), cpu()]));
    assert_eq!(pick(&index, &need("AMD A100", 1, 0)), None);
    assert_eq!(pick(&index, &need("EPYC", 1, 0)), None);
    assert_eq!(pick(&index, &need("A100", 1, 100_000)), None, "the memory is another GPU's");
    assert_eq!(pick(&index, &need("", 2, 40_960)), Some(key(1, 1)), "two different GPUs count");
    assert_eq!(pick(&index, &need("", 3, 0)), None, "the CPU does not");
}

#[test]
fn exclusions_are_in_plain_words() {
    let mut index = Index::new();
    let mut offered = offer(key(1, 1), vec![gpu("NVIDIA L4", 24_576), gpu("NVIDIA L4", 24_576)]);
    offered.runtimes = vec![Runtime::Wasm];
    offered.accepting = false;
    offered.busy = 2;
    index.upsert(offered.clone());
    assert_eq!(
        words_of(&index, &need("A100", 1, 0)),
        ["takes no tasks now", "does not run embed tasks", "has no GPU named A100", "0 of 2 slots free"]
    );
    offered.runtimes.push(Runtime::Embed);
    offered.accepting = true;
    offered.busy = 0;
    index.upsert(offered);
    assert_eq!(words_of(&index, &need("l4", 3, 0)), ["has 2 of 3 such GPUs"]);
    assert_eq!(words_of(&index, &need("l4", 1, 40_960)), ["has 24576 MiB of GPU memory, 40960 are needed"]);
    assert_eq!(index.explain(&need("l4", 2, 24_576), |_| false, 10), [(key(1, 1), vec![])]);
    let excluded = index.explain(&need("l4", 1, 0), |_| true, 10);
    assert_eq!(excluded, [(key(1, 1), vec![Exclusion::NotOffered])]);
    assert!(index.explain(&need("l4", 1, 0), |_| true, 0).is_empty());
}

#[test]
fn equal_hosts_share_the_work() {
    let mut index = Index::new();
    for node in 1..=4 {
        index.upsert(offer(key(node, 1), vec![gpu("A100", 1)]));
    }
    let mut given = [0; 5];
    for _ in 0..40 {
        let chosen = pick(&index, &need("a100", 1, 0)).unwrap();
        assert!(index.reserve(&chosen));
        // Done at once: only the memory of who was given a task last tells them apart.
        index.release(&chosen);
        given[usize::from(chosen.provider.0[0])] += 1;
    }
    assert_eq!(given, [0, 10, 10, 10, 10]);
}

#[test]
fn the_least_loaded_by_share_of_slots_is_chosen_until_all_are_full() {
    let mut index = Index::new();
    let mut large = offer(key(1, 1), vec![gpu("A100", 1)]);
    (large.slots, large.busy) = (8, 3);
    index.upsert(large);
    index.upsert(Offer { busy: 1, ..offer(key(2, 1), vec![gpu("A100", 1)]) });
    let mut order = Vec::new();
    while let Some(chosen) = pick(&index, &need("a100", 1, 0)) {
        assert!(index.reserve(&chosen));
        order.push(chosen.provider.0[0]);
    }
    // 3/8 before 1/2; at 4/8 and 1/2 the one that was never given a task.
    assert_eq!(order, [1, 2, 1, 1, 1, 1]);
    assert!(!index.reserve(&key(1, 1)));
    index.release(&key(2, 1));
    assert_eq!(pick(&index, &need("a100", 1, 0)), Some(key(2, 1)));
}

#[test]
fn a_report_and_a_reservation_count_once() {
    let mut index = Index::new();
    index.upsert(offer(key(1, 1), vec![cpu()]));
    assert!(index.reserve(&key(1, 1)));
    index.set_load(&key(1, 1), 1, 2, vec![]);
    assert_eq!(index.totals().busy, 1, "the report is of the reserved task");
    index.set_load(&key(1, 1), 0, 2, vec![]);
    assert_eq!(index.totals().busy, 1, "a report that was on the way takes nothing back");
    index.set_load(&key(1, 1), 2, 2, vec![]);
    assert_eq!(pick(&index, &need("", 0, 0)), None, "the other one came by another way");
    index.release(&key(1, 1));
    index.set_load(&key(1, 1), 0, 2, vec![]);
    assert_eq!(index.totals().busy, 0);
}

#[test]
fn a_warm_host_goes_before_a_less_loaded_one() {
    let mut index = Index::new();
    index.upsert(offer(key(1, 1), vec![gpu("A100", 1)]));
    index.upsert(Offer { busy: 1, warm: vec![MODEL, MODEL], ..offer(key(2, 1), vec![gpu("A100", 1)]) });
    index.upsert(Offer { warm: vec![MODEL], ..offer(key(3, 1), vec![gpu("L4", 1)]) });
    let warm = need_with_model("a100", 1, 0, MODEL);
    assert_eq!(pick(&index, &warm), Some(key(2, 1)));
    assert_eq!(pick(&index, &need("a100", 1, 0)), Some(key(1, 1)));
    assert!(index.reserve(&key(2, 1)));
    assert_eq!(pick(&index, &warm), Some(key(1, 1)), "a full host is no choice, warm or not");
    index.set_load(&key(1, 1), 1, 2, vec![]);
    index.set_load(&key(2, 1), 1, 2, vec![]);
    index.release(&key(2, 1));
    assert_eq!(pick(&index, &warm), Some(key(1, 1)), "what it no longer has loaded does not count");
}

#[test]
fn tasks_without_gpu_leave_the_gpus_alone_while_they_can() {
    let mut index = Index::new();
    index.upsert(offer(key(1, 1), vec![gpu("A100", 1)]));
    index.upsert(Offer { busy: 1, ..offer(key(2, 1), vec![cpu()]) });
    assert_eq!(pick(&index, &need("", 0, 0)), Some(key(2, 1)));
    assert!(index.reserve(&key(2, 1)));
    assert_eq!(pick(&index, &need("", 0, 0)), Some(key(1, 1)));
}

#[test]
fn hosts_that_stop_or_go_are_not_chosen() {
    let mut index = Index::new();
    index.upsert(offer(key(1, 1), vec![gpu("A100", 1)]));
    index.upsert(offer(key(1, 2), vec![gpu("L4", 1)]));
    assert!(index.reserve(&key(1, 1)));
    let a100 = need("a100", 1, 0);
    assert_eq!(index.fitting(Address::repeat_byte(1), &a100).collect::<Vec<_>>(), [key(1, 1)]);
    assert_eq!(index.fitting(Address::repeat_byte(2), &a100).count(), 0);
    index.set_accepting(&key(1, 1), false);
    assert_eq!(pick(&index, &a100), None);
    assert!(!index.reserve(&key(1, 1)));
    index.set_accepting(&key(1, 1), true);
    index.upsert(offer(key(1, 1), vec![gpu("H100", 1)]));
    assert_eq!(pick(&index, &a100), None);
    assert_eq!(index.totals().busy, 1, "a refreshed offer keeps its reservations");
    assert!(index.remove(&key(1, 1)));
    assert!(!index.remove(&key(1, 1)));
    assert!(index.remove(&key(1, 2)));
    assert_eq!(index.totals(), scheduler::Totals::default());
}

#[test]
fn a_model_of_engines_goes_to_hosts_that_serve_it() {
    let mut index = Index::new();
    let serving = |number, models: &[&str]| Offer {
        served: models.iter().map(|model| (*model).to_owned()).collect(),
        ..offer(key(number, 1), vec![cpu()])
    };
    index.upsert(serving(1, &[]));
    index.upsert(serving(2, &["other", "tiny", "tiny"]));
    let tiny = need_served("tiny");
    assert_eq!(tiny.served(), Some("tiny"));
    assert_eq!(pick(&index, &tiny), Some(key(2, 1)));
    assert_eq!(pick(&index, &need_served("tinier")), None);
    assert!(
        index.explain(&tiny, |_| false, 10).iter().any(|(host, why)| *host == key(2, 1) && why.is_empty())
    );
    assert!(words_of(&index, &tiny).contains(&"no engine of it serves tiny".to_owned()));
    assert_eq!(index.fitting(Address::repeat_byte(1), &tiny).next(), None);
    assert_eq!(index.fitting(Address::repeat_byte(2), &tiny).next(), Some(key(2, 1)));

    // A busy host is none for it, and one that stopped serving it neither.
    assert!(index.reserve(&key(2, 1)) && index.reserve(&key(2, 1)));
    assert_eq!(pick(&index, &tiny), None);
    index.release(&key(2, 1));
    assert_eq!(pick(&index, &tiny), Some(key(2, 1)));
    index.upsert(serving(2, &["other"]));
    assert_eq!(pick(&index, &tiny), None);
    index.upsert(serving(1, &["tiny"]));
    assert_eq!(pick(&index, &tiny), Some(key(1, 1)));
    index.remove(&key(1, 1));
    assert_eq!(pick(&index, &tiny), None);
}
