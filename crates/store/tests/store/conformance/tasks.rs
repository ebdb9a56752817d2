//! Tasks and their histories.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use store::{Commit, EventFilter, KeyId, Page, Published, Store, StoreError, StoredTask, TaskFilter};
use taskmarket::{Event, Status, TaskId, TaskRecord};

use crate::fixtures::{
    accepted, address, at, cancelled, commit, failed, node, owner, publish, published, record_events, task,
};

pub(crate) async fn a_publication_counts_once(store: Arc<dyn Store>) {
    let (record, first) = published(task(1), at(0));
    let new = store.publish(record.clone(), first.clone(), owner()).await.unwrap();
    assert_eq!(new, Published::New { seq: 1 });
    let stored = StoredTask { record: record.clone(), owner: owner(), node: None };
    assert_eq!(store.task(record.id).await.unwrap(), Some(stored.clone()));

    let other = KeyId::of_api_key("another key");
    let (mut again, _) = published(task(1), at(99));
    again.attempts = 7;
    let existing = store.publish(again, first, other).await.unwrap();
    assert_eq!(existing, Published::Existing(Box::new(stored)));
    assert_eq!(store.last_seq().await.unwrap(), 1);
    assert_eq!(store.counts().await.unwrap()[&Status::Open], 1);
    assert_eq!(store.history(record.id).await.unwrap().len(), 1);
}

pub(crate) async fn of_publications_at_once_each_task_counts_once(store: Arc<dyn Store>) {
    let callers = (0..60_u64).map(|number| {
        let store = store.clone();
        let (record, first) = published(task(number % 3), at(0));
        tokio::spawn(async move { (number % 3, store.publish(record, first, owner()).await.unwrap()) })
    });
    let mut new = Vec::new();
    for caller in callers.collect::<Vec<_>>() {
        match caller.await.unwrap() {
            (salt, Published::New { seq }) => new.push((salt, seq)),
            (salt, Published::Existing(task)) => {
                assert_eq!(task.record, published(self::task(salt), at(0)).0)
            }
        }
    }
    new.sort_unstable();
    assert!(new.iter().map(|(salt, _)| *salt).eq(0..3), "{new:?}");
    new.sort_unstable_by_key(|(_, seq)| *seq);
    assert!(new.iter().map(|(_, seq)| *seq).eq(1..=3), "{new:?}");
    assert_eq!(store.last_seq().await.unwrap(), 3);
    assert_eq!(store.counts().await.unwrap()[&Status::Open], 3);
}

pub(crate) async fn an_unknown_task_is_none(store: Arc<dyn Store>) {
    let (record, _) = published(task(1), at(0));
    assert_eq!(store.task(record.id).await.unwrap(), None);
    assert_eq!(store.history(record.id).await.unwrap(), []);
    assert_eq!(store.last_seq().await.unwrap(), 0);
    assert_eq!(store.next_due().await.unwrap(), None);
    let mut next = record.clone();
    let events = record_events(&mut next, at(1), vec![cancelled(&record)]);
    assert_eq!(store.commit(1, &next, events, None).await.unwrap(), Commit::Conflict);
}

pub(crate) async fn of_two_commits_on_one_version_one_wins(store: Arc<dyn Store>) {
    let record = publish(&*store, task(1), at(0)).await;
    let attempts = (1..=8).map(|provider| {
        let (store, mut record) = (store.clone(), record.clone());
        let events = vec![accepted(&record, address(provider), at(600))];
        let events = record_events(&mut record, at(1), events);
        tokio::spawn(async move { (store.commit(1, &record, events, None).await.unwrap(), record) })
    });
    let mut winners = Vec::new();
    for attempt in attempts.collect::<Vec<_>>() {
        let (commit, record) = attempt.await.unwrap();
        if commit == (Commit::Done { seq: 2 }) {
            winners.push(record);
        } else {
            assert_eq!(commit, Commit::Conflict);
        }
    }
    assert_eq!(winners.len(), 1);
    assert_eq!(store.task(record.id).await.unwrap().unwrap().record, winners[0]);
    assert_eq!(store.history(record.id).await.unwrap().len(), 2);
}

pub(crate) async fn events_must_lead_to_the_record(store: Arc<dyn Store>) {
    let record = publish(&*store, task(1), at(0)).await;
    let mut next = record.clone();
    let events = record_events(&mut next, at(1), vec![cancelled(&record)]);
    let cases =
        [(1, vec![]), (1, [events.clone(), events.clone()].concat()), (0, events.clone()), (2, events)];
    for (expected, events) in cases {
        let refused = store.commit(expected, &next, events, None).await;
        assert!(matches!(refused, Err(StoreError::Mismatch { .. })), "{refused:?}");
    }
    assert_eq!(store.task(record.id).await.unwrap().unwrap().record, record);
}

pub(crate) async fn histories_keep_their_order_and_each_status(store: Arc<dyn Store>) {
    let mut record = publish(&*store, task(1), at(0)).await;
    let other = publish(&*store, task(2), at(0)).await;
    let accept = accepted(&record, address(7), at(600));
    assert_eq!(commit(&*store, &mut record, at(1), vec![accept], Some(node(1))).await, 3);
    // One commit: the lease lapses, which opens the task again, and then it is cancelled.
    let events = vec![Event::LeaseLapsed, cancelled(&record)];
    assert_eq!(commit(&*store, &mut record, at(700), events, None).await, 5);

    let history = store.history(record.id).await.unwrap();
    let steps: Vec<_> =
        history.iter().map(|event| (event.seq, event.recorded.version, event.status)).collect();
    assert_eq!(
        steps,
        [(1, 1, Status::Open), (3, 2, Status::Accepted), (4, 3, Status::Open), (5, 4, Status::Cancelled)]
    );
    assert!(history.iter().all(|event| event.task_id == record.id));
    let mut replayed = published(task(1), at(0)).0;
    for event in &history[1..] {
        taskmarket::apply(&mut replayed, event.recorded.at, &event.recorded.event);
    }
    assert_eq!(replayed, record);
    assert_eq!(store.task(record.id).await.unwrap().unwrap().record, record);
    assert_eq!(store.history(other.id).await.unwrap().len(), 1);
}

pub(crate) async fn events_are_found_by_sequence_task_and_requester(store: Arc<dyn Store>) {
    let mut theirs = task(3);
    theirs.requester = address(2);
    let mut first = publish(&*store, task(1), at(0)).await;
    publish(&*store, theirs, at(0)).await;
    publish(&*store, task(2), at(0)).await;
    let cancel = cancelled(&first);
    commit(&*store, &mut first, at(1), vec![cancel], None).await;

    let seqs = async |seq, task, requester, limit| {
        let events = store.events_after(seq, EventFilter { task, requester }, limit).await.unwrap();
        events.iter().map(|event| event.seq).collect::<Vec<_>>()
    };
    assert_eq!(seqs(0, None, None, 10).await, [1, 2, 3, 4]);
    assert_eq!(seqs(1, None, None, 2).await, [2, 3]);
    assert_eq!(seqs(4, None, None, 10).await, [0; 0]);
    assert_eq!(seqs(0, Some(first.id), None, 10).await, [1, 4]);
    assert_eq!(seqs(1, None, Some(address(1)), 10).await, [3, 4]);
    assert_eq!(seqs(0, Some(first.id), Some(address(2)), 10).await, [0; 0]);
    assert_eq!(store.last_seq().await.unwrap(), 4);
}

pub(crate) async fn a_follower_is_woken(store: Arc<dyn Store>) {
    let soon = Duration::from_millis(20);
    assert!(!store.wait_for_events(0, soon).await.unwrap());
    let follower = {
        let store = store.clone();
        tokio::spawn(async move { store.wait_for_events(1, Duration::from_secs(60)).await.unwrap() })
    };
    let mut record = publish(&*store, task(1), at(0)).await;
    assert!(store.wait_for_events(0, soon).await.unwrap(), "what is there is not waited for");
    let cancel = cancelled(&record);
    commit(&*store, &mut record, at(1), vec![cancel], None).await;
    assert!(follower.await.unwrap());
    assert!(!store.wait_for_events(2, soon).await.unwrap());
}

async fn ids(store: &dyn Store, filter: TaskFilter) -> Vec<TaskId> {
    let page = store.list(filter, None, 100).await.unwrap();
    assert_eq!(page.next, None);
    page.tasks.iter().map(|task| task.record.id).collect()
}

pub(crate) async fn listings_filter_by_any_combination(store: Arc<dyn Store>) {
    let mut records: Vec<TaskRecord> = Vec::new();
    for salt in 0..24_u64 {
        let mut task = task(salt);
        task.requester = address(1 + (salt % 2) as u8);
        task.config.gpu_type = ["A100", "a100", "H100", ""][(salt % 4) as usize].into();
        let mut record = publish(&*store, task, at(salt / 2)).await;
        if salt % 3 != 0 {
            let accept = accepted(&record, address(8 + (salt % 3) as u8), at(600));
            commit(&*store, &mut record, at(20), vec![accept], None).await;
        }
        records.push(record);
    }
    let options = |some: Vec<TaskFilter>| [vec![TaskFilter::default()], some].concat();
    let none = TaskFilter::default;
    let requesters = options(vec![TaskFilter { requester: Some(address(1)), ..none() }]);
    let providers = options([9, 10, 77].map(|p| TaskFilter { provider: Some(address(p)), ..none() }).into());
    let statuses = options(
        [Status::Open, Status::Accepted, Status::Failed]
            .map(|status| TaskFilter { status: Some(status), ..none() })
            .into(),
    );
    let gpus = options(
        ["A100", "h100", "", "A10"].map(|g| TaskFilter { gpu_type: Some(g.into()), ..none() }).into(),
    );
    let ranges = [(None, None), (Some(at(3)), None), (None, Some(at(9))), (Some(at(3)), Some(at(9)))];
    for (requester, provider) in requesters.iter().flat_map(|r| providers.iter().map(move |p| (r, p))) {
        for (status, gpu) in statuses.iter().flat_map(|s| gpus.iter().map(move |g| (s, g))) {
            for (created_from, created_before) in ranges {
                let filter = TaskFilter {
                    requester: requester.requester,
                    provider: provider.provider,
                    status: status.status,
                    gpu_type: gpu.gpu_type.clone(),
                    created_from,
                    created_before,
                };
                let expected: Vec<_> =
                    records.iter().rev().filter(|record| passes(record, &filter)).map(|r| r.id).collect();
                assert_eq!(ids(&*store, filter.clone()).await, expected, "{filter:?}");
            }
        }
    }
}

fn passes(record: &TaskRecord, filter: &TaskFilter) -> bool {
    filter.requester.is_none_or(|requester| record.task.requester == requester)
        && filter.provider.is_none_or(|provider| record.provider.is_some_and(|held| held.0 == provider))
        && filter.status.is_none_or(|status| record.status() == status)
        && filter.gpu_type.as_ref().is_none_or(|gpu| record.task.config.gpu_type.eq_ignore_ascii_case(gpu))
        && filter.created_from.is_none_or(|from| record.created_at >= from)
        && filter.created_before.is_none_or(|before| record.created_at < before)
}

pub(crate) async fn pages_neither_repeat_nor_skip_while_tasks_are_added(store: Arc<dyn Store>) {
    let mut expected = Vec::new();
    for salt in 0..25 {
        // Many share a second.
        expected.push(publish(&*store, task(salt), at(salt / 10)).await.id);
    }
    expected.reverse();
    let mut seen = Vec::new();
    let mut cursor = None;
    for round in 0.. {
        let page = store.list(TaskFilter::default(), cursor, 4).await.unwrap();
        assert!(page.tasks.len() == 4 || page.next.is_none());
        seen.extend(page.tasks.iter().map(|task| task.record.id));
        publish(&*store, task(1000 + round), at(100)).await;
        let Some(next) = page.next else { break };
        // As a caller hands it back.
        cursor = Some(next.to_string().parse().unwrap());
    }
    assert_eq!(seen, expected);
    let all = store.list(TaskFilter::default(), None, 32).await.unwrap();
    assert_eq!(
        (all.tasks.len(), all.next),
        (32, None),
        "no next page where this one ends with the last task"
    );
    let nothing = store.list(TaskFilter::default(), None, 0).await.unwrap();
    assert_eq!(nothing, Page { tasks: vec![], next: None });
}

pub(crate) async fn open_and_held_tasks_come_oldest_first(store: Arc<dyn Store>) {
    let mut records = Vec::new();
    for salt in 0..9_u64 {
        let mut record = publish(&*store, task(salt), at(salt / 4)).await;
        if salt % 3 > 0 {
            let accept = accepted(&record, address(salt as u8 % 3), at(600));
            commit(&*store, &mut record, at(10), vec![accept], None).await;
        }
        records.push(record.id);
    }
    let salts = |page: &Page| -> Vec<usize> {
        page.tasks.iter().map(|task| records.iter().position(|id| *id == task.record.id).unwrap()).collect()
    };
    let first = store.open_tasks(None, 2).await.unwrap();
    assert_eq!(salts(&first), [0, 3]);
    let second = store.open_tasks(first.next, 2).await.unwrap();
    assert_eq!((salts(&second), second.next), (vec![6], None));
    assert_eq!(salts(&store.held(None, None, 100).await.unwrap()), [1, 2, 4, 5, 7, 8]);
    let first = store.held(Some(address(2)), None, 2).await.unwrap();
    assert_eq!(salts(&first), [2, 5]);
    assert_eq!(salts(&store.held(Some(address(2)), first.next, 2).await.unwrap()), [8]);
    assert_eq!(salts(&store.held(Some(address(3)), None, 2).await.unwrap()), [0; 0]);
}

pub(crate) async fn counts_follow_the_commits(store: Arc<dyn Store>) {
    let expect = async |open, accepted, cancelled| {
        let mut expected: BTreeMap<_, _> = Status::ALL.into_iter().map(|status| (status, 0)).collect();
        expected.extend([(Status::Open, open), (Status::Accepted, accepted), (Status::Cancelled, cancelled)]);
        assert_eq!(store.counts().await.unwrap(), expected);
    };
    expect(0, 0, 0).await;
    let mut record = publish(&*store, task(1), at(0)).await;
    publish(&*store, task(2), at(0)).await;
    expect(2, 0, 0).await;
    let accept = accepted(&record, address(7), at(600));
    commit(&*store, &mut record, at(1), vec![accept], None).await;
    expect(1, 1, 0).await;
    let events = vec![Event::LeaseLapsed, cancelled(&record)];
    commit(&*store, &mut record, at(700), events, None).await;
    expect(1, 0, 1).await;
}

pub(crate) async fn due_tasks_come_most_overdue_first(store: Arc<dyn Store>) {
    let mut soon = publish(&*store, task(1), at(0)).await;
    let mut gone = publish(&*store, task(2), at(0)).await;
    let mut late = task(3);
    late.deadline = at(7200);
    let late = publish(&*store, late, at(0)).await;
    assert_eq!(store.next_due().await.unwrap(), Some(at(3600)));
    let accept = accepted(&soon, address(7), at(600));
    commit(&*store, &mut soon, at(1), vec![accept], None).await;
    let cancel = cancelled(&gone);
    commit(&*store, &mut gone, at(1), vec![cancel], None).await;

    assert_eq!(store.next_due().await.unwrap(), Some(at(600)));
    assert_eq!(store.due(at(599), 10).await.unwrap(), []);
    assert_eq!(store.due(at(600), 10).await.unwrap(), [soon.id]);
    assert_eq!(store.due(at(7200), 10).await.unwrap(), [soon.id, late.id]);
    assert_eq!(store.due(at(7200), 1).await.unwrap(), [soon.id]);
}

pub(crate) async fn the_host_stays_with_its_attempt(store: Arc<dyn Store>) {
    let host = async |id| store.task(id).await.unwrap().unwrap().node;
    let mut record = publish(&*store, task(1), at(0)).await;
    let accept = accepted(&record, address(7), at(600));
    commit(&*store, &mut record, at(1), vec![accept], Some(node(1))).await;
    assert_eq!(host(record.id).await, Some(node(1)));
    let fail = failed(&record, address(7));
    commit(&*store, &mut record, at(2), vec![fail], None).await;
    assert_eq!(host(record.id).await, Some(node(1)), "the last attempt was its");
    let accept = accepted(&record, address(7), at(600));
    commit(&*store, &mut record, at(3), vec![accept], None).await;
    assert_eq!(host(record.id).await, None, "nobody said which host has the new one");
}

pub(crate) async fn a_closed_store_refuses(store: Arc<dyn Store>) {
    let record = publish(&*store, task(1), at(0)).await;
    store.close().await;
    store.close().await;
    assert!(matches!(store.task(record.id).await, Err(StoreError::Closed)));
    let (record, first) = published(task(2), at(0));
    assert!(matches!(store.publish(record, first, owner()).await, Err(StoreError::Closed)));
}
