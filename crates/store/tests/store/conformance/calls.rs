//! What calls of the API leave: keys, kept answers, webhooks.

use std::sync::Arc;

use store::{
    ANSWER_KEPT_SECS, Begun, Deadlines, Delivery, DeliveryRetry, IN_FLIGHT_SECS, KeyId, ModelUsage, NewKey,
    NewWebhook, Receipt, Scope, Store, StoredAnswer, StoredKey, StoredReceipt, Usage, UsageFilter,
};
use taskmarket::{TaskId, Timestamp};

use crate::fixtures::{START, accepted, address, at, cancelled, commit, owner, publish, receipt, task};

pub(crate) async fn keys_are_kept_listed_and_revoked(store: Arc<dyn Store>) {
    let mut keys: Vec<_> = (0..5_u8)
        .map(|number| NewKey {
            id: KeyId::of_api_key(&format!("key {number}")),
            hash: [number; 32],
            name: format!("caller {number}"),
            scopes: Scope::ALL[..usize::from(number.min(4))].to_vec(),
            requests_per_minute: (number > 1).then_some(u32::MAX),
            tokens_per_minute: (number > 2).then_some(60),
            deadlines: Deadlines {
                total: (number > 1).then_some(u32::MAX),
                first_byte: (number > 2).then_some(7),
                between_tokens: (number > 3).then_some(1),
            },
            created_at: at(u64::from(number)),
            expires_at: (number > 3).then(|| at(99)),
        })
        .collect();
    for key in &keys {
        assert!(store.add_key(key.clone()).await.unwrap());
        let stored = StoredKey { key: key.clone(), revoked_at: None };
        assert_eq!(store.key(&key.id).await.unwrap(), Some(stored));
    }
    let other = NewKey { name: "other".into(), ..keys[0].clone() };
    assert!(!store.add_key(other).await.unwrap(), "the id is taken");
    assert_eq!(store.key(&owner()).await.unwrap(), None);

    keys.sort_by(|a, b| a.id.cmp(&b.id));
    let first = store.keys(None, 3).await.unwrap();
    let second = store.keys(Some(first[2].key.id.clone()), 3).await.unwrap();
    let listed: Vec<_> = first.into_iter().chain(second).map(|stored| stored.key).collect();
    assert_eq!(listed, keys);

    assert!(store.revoke_key(&keys[1].id, at(50)).await.unwrap());
    assert!(!store.revoke_key(&keys[1].id, at(51)).await.unwrap());
    assert!(!store.revoke_key(&owner(), at(51)).await.unwrap());
    assert_eq!(store.key(&keys[1].id).await.unwrap().unwrap().revoked_at, Some(at(50)));
    assert_eq!(store.key(&keys[2].id).await.unwrap().unwrap().revoked_at, None);
}

pub(crate) async fn use_adds_up_by_key_and_day(store: Arc<dyn Store>) {
    let (mine, other) = (owner(), KeyId::of_api_key("other"));
    let used = |owner: &KeyId, day, requests| Usage { owner: owner.clone(), day, requests };
    store.add_usage(vec![]).await.unwrap();
    store.add_usage(vec![used(&mine, 20, 1), used(&other, 20, 5), used(&mine, 21, 2)]).await.unwrap();
    store.add_usage(vec![used(&mine, 20, 10), used(&mine, 20, 100), used(&mine, 30, 7)]).await.unwrap();

    let all = UsageFilter { owner: None, from: 0, to: 100 };
    let mut both = [used(&mine, 20, 111), used(&other, 20, 5)];
    both.sort_by(|a, b| a.owner.cmp(&b.owner));
    let [first, second] = both;
    let rows = [first, second, used(&mine, 21, 2), used(&mine, 30, 7)];
    assert_eq!(store.usage(all.clone(), None, 10).await.unwrap(), rows);
    let after = Some((20, rows[0].owner.clone()));
    assert_eq!(store.usage(all.clone(), after, 2).await.unwrap(), rows[1..3]);
    let days = UsageFilter { from: 21, to: 29, ..all.clone() };
    assert_eq!(store.usage(days, None, 10).await.unwrap(), rows[2..3]);
    let others = UsageFilter { owner: Some(other.clone()), ..all };
    assert_eq!(store.usage(others, None, 10).await.unwrap(), [used(&other, 20, 5)]);
}

pub(crate) async fn receipts_are_found_and_add_up_by_model(store: Arc<dyn Store>) {
    let other = KeyId::of_api_key("other");
    let others = Receipt { owner: other.clone(), at: at(9), ..receipt("a", 100) };
    store.add_receipts(vec![]).await.unwrap();
    store.add_receipts(vec![receipt("a", 1), receipt("b", 2), receipt("a", 3)]).await.unwrap();
    let elsewhere = Receipt { model: "n/x".into(), ..receipt("c", 4) };
    store.add_receipts(vec![others.clone(), elsewhere, receipt("b", 5)]).await.unwrap();

    let found = async |owner: Option<&KeyId>, id: &str| store.receipt(owner.cloned(), id).await.unwrap();
    let of = |receipt: Receipt| Some(StoredReceipt { owner: receipt.owner, record: receipt.record });
    assert_eq!(found(Some(&owner()), "a").await, of(receipt("a", 3)), "the last of them stays");
    assert_eq!(found(Some(&owner()), "b").await, of(receipt("b", 5)));
    assert_eq!(found(Some(&other), "a").await, of(others.clone()));
    assert_eq!(found(None, "a").await, of(others), "the newest");
    assert_eq!(found(Some(&other), "b").await, None);
    assert_eq!(found(None, "d").await, None);

    let day = START / 86_400;
    let used = |owner: &KeyId, model: &str, requests, tokens| ModelUsage {
        owner: owner.clone(),
        day,
        model: model.into(),
        requests,
        prompt_tokens: tokens,
        completion_tokens: 2 * tokens,
    };
    let mine = [used(&owner(), "m", 4, 11), used(&owner(), "n/x", 1, 4)];
    let all = UsageFilter { owner: None, from: 0, to: day };
    let only = UsageFilter { owner: Some(owner()), ..all.clone() };
    assert_eq!(store.model_usage(only.clone(), None, 10).await.unwrap(), mine);
    let after = Some((day, owner(), "m".to_owned()));
    assert_eq!(store.model_usage(only.clone(), after, 10).await.unwrap(), mine[1..]);
    assert_eq!(store.model_usage(only, None, 1).await.unwrap(), mine[..1]);
    assert_eq!(store.model_usage(all.clone(), None, 10).await.unwrap().len(), 3);
    let before = UsageFilter { to: day - 1, ..all };
    assert_eq!(store.model_usage(before, None, 10).await.unwrap(), []);
}

pub(crate) async fn old_receipts_are_forgotten_and_their_use_is_not(store: Arc<dyn Store>) {
    store.add_receipts(vec![receipt("old", 1), receipt("new", 2)]).await.unwrap();
    assert_eq!(store.prune_receipts(at(2)).await.unwrap(), 1);
    assert_eq!(store.prune_receipts(at(2)).await.unwrap(), 0);
    assert_eq!(store.receipt(None, "old").await.unwrap(), None);
    assert!(store.receipt(None, "new").await.unwrap().is_some());
    let all = UsageFilter { owner: None, from: 0, to: u64::from(u32::MAX) };
    assert_eq!(store.model_usage(all, None, 10).await.unwrap()[0].requests, 2);
}

fn answer() -> StoredAnswer {
    StoredAnswer {
        status: 201,
        content_type: "application/json".into(),
        headers: vec![("x-cost".into(), "41".into()), ("x-model".into(), "\u{e9} \"7b\"".into())],
        body: vec![0, 0xff, b'{'],
    }
}

pub(crate) async fn a_request_is_carried_out_once(store: Arc<dyn Store>) {
    let mine = owner();
    let begun = (0..16).map(|_| {
        let (store, mine) = (store.clone(), mine.clone());
        tokio::spawn(async move { store.begin(&mine, "k", [1; 32], at(0)).await.unwrap() })
    });
    let mut first = 0;
    for begun in begun.collect::<Vec<_>>() {
        let begun = begun.await.unwrap();
        assert!(matches!(begun, Begun::New | Begun::InFlight), "{begun:?}");
        first += usize::from(begun == Begun::New);
    }
    assert_eq!(first, 1);
    assert_eq!(store.begin(&mine, "k", [2; 32], at(1)).await.unwrap(), Begun::Mismatch);
    let other = KeyId::of_api_key("other");
    assert_eq!(
        store.begin(&other, "k", [2; 32], at(1)).await.unwrap(),
        Begun::New,
        "keys are each owner's own"
    );

    store.finish(&mine, "k", answer()).await.unwrap();
    let late = StoredAnswer { status: 500, ..answer() };
    store.finish(&mine, "k", late).await.unwrap();
    store.abandon(&mine, "k").await.unwrap();
    assert_eq!(store.begin(&mine, "k", [1; 32], at(2)).await.unwrap(), Begun::Done(answer()));
    assert_eq!(store.begin(&mine, "k", [2; 32], at(2)).await.unwrap(), Begun::Mismatch);

    // A day later both are forgotten, pruned or not.
    let kept = at(ANSWER_KEPT_SECS);
    assert_eq!(store.begin(&mine, "k", [2; 32], kept).await.unwrap(), Begun::New);
    assert_eq!(store.prune_idempotency(at(2)).await.unwrap(), 1);
    assert_eq!(store.begin(&mine, "k", [2; 32], kept).await.unwrap(), Begun::InFlight);
    assert_eq!(store.begin(&other, "k", [3; 32], at(3)).await.unwrap(), Begun::New);
}

pub(crate) async fn a_lost_request_may_begin_again(store: Arc<dyn Store>) {
    let mine = owner();
    assert_eq!(store.begin(&mine, "k", [1; 32], at(0)).await.unwrap(), Begun::New);
    store.abandon(&mine, "k").await.unwrap();
    assert_eq!(store.begin(&mine, "k", [2; 32], at(1)).await.unwrap(), Begun::New);
    // Its relay is killed.
    let almost = at(IN_FLIGHT_SECS);
    assert_eq!(store.begin(&mine, "k", [2; 32], almost).await.unwrap(), Begun::InFlight);
    let later = at(1 + IN_FLIGHT_SECS);
    assert_eq!(store.begin(&mine, "k", [1; 32], later).await.unwrap(), Begun::Mismatch);
    assert_eq!(store.begin(&mine, "k", [2; 32], later).await.unwrap(), Begun::New);
    assert_eq!(store.begin(&mine, "k", [2; 32], later).await.unwrap(), Begun::InFlight);
}

pub(crate) async fn a_request_that_goes_on_keeps_its_mark(store: Arc<dyn Store>) {
    let mine = owner();
    assert_eq!(store.begin(&mine, "k", [1; 32], at(0)).await.unwrap(), Begun::New);
    assert!(store.renew(&mine, "k", at(0), at(40)).await.unwrap());
    assert_eq!(store.begin(&mine, "k", [1; 32], at(40 + IN_FLIGHT_SECS - 1)).await.unwrap(), Begun::InFlight);
    let other = KeyId::of_api_key("other");
    assert!(!store.renew(&other, "k", at(40), at(50)).await.unwrap(), "it is another's");

    // Who was thought lost has no mark any more, and does not get the next one's.
    let lapsed = at(40 + IN_FLIGHT_SECS);
    assert_eq!(store.begin(&mine, "k", [1; 32], lapsed).await.unwrap(), Begun::New);
    assert!(!store.renew(&mine, "k", at(40), at(500)).await.unwrap());
    assert_eq!(store.begin(&mine, "k", [1; 32], lapsed.plus(IN_FLIGHT_SECS)).await.unwrap(), Begun::New);

    store.finish(&mine, "k", answer()).await.unwrap();
    assert!(
        !store.renew(&mine, "k", lapsed.plus(IN_FLIGHT_SECS), at(999)).await.unwrap(),
        "it has its answer"
    );
    store.abandon(&mine, "none").await.unwrap();
    assert!(!store.renew(&mine, "none", at(0), at(1)).await.unwrap());
}

fn webhook(task_id: TaskId, url: &str) -> NewWebhook {
    NewWebhook { task_id, url: url.into(), secret_name: "webhooks".into(), created_at: at(0) }
}

async fn take(store: &dyn Store, now: Timestamp) -> Vec<Delivery> {
    store.take_deliveries(now, now.plus(30), 100).await.unwrap()
}

pub(crate) async fn webhooks_walk_their_tasks_history(store: Arc<dyn Store>) {
    let mut record = publish(&*store, task(1), at(0)).await;
    publish(&*store, task(2), at(0)).await;
    assert_eq!(store.next_delivery().await.unwrap(), None);
    let hook = webhook(record.id, "https://hooks.example/a");
    assert!(store.add_webhook(hook.clone()).await.unwrap());
    assert!(!store.add_webhook(hook.clone()).await.unwrap(), "it is there");
    assert!(!store.add_webhook(webhook(TaskId(crate::fixtures::node(9).0), "https://x")).await.unwrap());
    let accept = accepted(&record, address(7), at(600));
    commit(&*store, &mut record, at(1), vec![accept], None).await;

    assert_eq!(store.next_delivery().await.unwrap(), Some(at(0)));
    let history = store.history(record.id).await.unwrap();
    for event in &history {
        let taken = take(&*store, at(5)).await;
        assert_eq!(taken.len(), 1);
        assert_eq!((&taken[0].webhook.webhook, &taken[0].event), (&hook, event));
        let id = taken[0].webhook.id;
        assert!(!store.delivery_done(id, event.seq + 1, at(5)).await.unwrap(), "not the next event");
        assert!(store.delivery_done(id, event.seq, at(5)).await.unwrap());
        assert!(!store.delivery_done(id, event.seq, at(5)).await.unwrap(), "done before");
    }
    assert_eq!(store.next_delivery().await.unwrap(), None);
    assert_eq!(take(&*store, at(999)).await, []);

    let events = vec![taskmarket::Event::LeaseLapsed, cancelled(&record)];
    commit(&*store, &mut record, at(700), events, None).await;
    assert_eq!(store.next_delivery().await.unwrap(), Some(at(700)));
    assert_eq!(take(&*store, at(699)).await, []);
    assert_eq!(take(&*store, at(700)).await[0].event.recorded.version, 3);
    let stored = &store.deliveries(record.id).await.unwrap()[0];
    assert_eq!((stored.delivered, stored.tries, stored.dead_at), (history[1].seq, 0, None));
}

pub(crate) async fn a_delivery_is_one_callers_until_it_lapses(store: Arc<dyn Store>) {
    for salt in 0..3 {
        let record = publish(&*store, task(salt), at(0)).await;
        store.add_webhook(webhook(record.id, "https://hooks.example/a")).await.unwrap();
        store.add_webhook(webhook(record.id, "https://hooks.example/b")).await.unwrap();
    }
    let takers = (0..8).map(|_| {
        let store = store.clone();
        tokio::spawn(async move { store.take_deliveries(at(1), at(31), 2).await.unwrap() })
    });
    let mut taken = Vec::new();
    for taker in takers.collect::<Vec<_>>() {
        taken.extend(taker.await.unwrap().into_iter().map(|delivery| delivery.webhook.id));
    }
    taken.sort_unstable();
    let all = taken.len();
    taken.dedup();
    assert_eq!((all, taken.len()), (6, 6));
    assert_eq!(take(&*store, at(30)).await, []);
    assert_eq!(take(&*store, at(31)).await.len(), 6, "whoever took them did not say what became of them");
}

pub(crate) async fn a_failing_webhook_is_given_up_and_replayed(store: Arc<dyn Store>) {
    let mut record = publish(&*store, task(1), at(0)).await;
    store.add_webhook(webhook(record.id, "https://hooks.example/a")).await.unwrap();
    let delivery = take(&*store, at(1)).await.remove(0);
    let (id, seq) = (delivery.webhook.id, delivery.event.seq);
    for (failed_at, next) in [(2, 4), (4, 8)] {
        let retry = DeliveryRetry { at: at(failed_at), next_try: at(next), error: format!("503 at {next}") };
        assert!(store.delivery_retry(id, seq, retry).await.unwrap());
    }
    assert_eq!(take(&*store, at(7)).await, []);
    let again = take(&*store, at(8)).await.remove(0);
    assert_eq!((again.event.seq, again.webhook.tries), (seq, 2));
    assert_eq!(
        (again.webhook.failing_since, again.webhook.error.as_deref()),
        (Some(at(2)), Some("503 at 8"))
    );

    assert!(store.delivery_dead(id, seq, at(9), "gone").await.unwrap());
    assert!(!store.delivery_dead(id, seq, at(10), "again").await.unwrap());
    assert!(!store.delivery_done(id, seq, at(10)).await.unwrap());
    let cancel = cancelled(&record);
    commit(&*store, &mut record, at(11), vec![cancel], None).await;
    assert_eq!(take(&*store, at(999)).await, [], "nothing wakes it");
    let dead = &store.deliveries(record.id).await.unwrap()[0];
    assert_eq!((dead.dead_at, dead.error.as_deref(), dead.tries), (Some(at(9)), Some("gone"), 3));

    assert_eq!(store.replay(record.id, at(20)).await.unwrap(), 1);
    for version in [1, 2] {
        let delivery = take(&*store, at(20)).await.remove(0);
        assert_eq!((delivery.event.recorded.version, delivery.webhook.tries), (version, 0));
        assert_eq!((delivery.webhook.error, delivery.webhook.failing_since), (None, None));
        assert!(store.delivery_done(id, delivery.event.seq, at(20)).await.unwrap());
    }
    assert_eq!(store.next_delivery().await.unwrap(), None);
}
