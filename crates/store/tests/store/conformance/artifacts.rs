//! What is known of artifacts: whose they are, when they were used, and how they go.

use std::sync::Arc;

use store::{Added, ArtifactMeta, DOOMED_SECS, KeyId, NewArtifact, Store};
use taskmarket::{B256, ContentHash};

use crate::fixtures::{accepted, address, at, cancelled, commit, node, owner, publish, task};

fn digest(number: u8) -> ContentHash {
    ContentHash(B256::repeat_byte(number))
}

fn artifact(number: u8, size: u64, seconds: u64) -> NewArtifact {
    NewArtifact { digest: digest(number), size, owner: owner(), at: at(seconds) }
}

pub(crate) async fn the_first_word_on_an_artifact_stays(store: Arc<dyn Store>) {
    assert_eq!(store.artifact(digest(5)).await.unwrap(), None);
    assert_eq!(store.add_artifact(artifact(5, 1 << 40, 1), None).await.unwrap(), Added::New);
    let again = NewArtifact { owner: KeyId::of_api_key("other"), ..artifact(5, 1 << 40, 3) };
    assert_eq!(store.add_artifact(again, Some(0)).await.unwrap(), Added::Known);
    assert_eq!(store.add_artifact(artifact(5, 1 << 40, 2), None).await.unwrap(), Added::Known);
    let meta =
        ArtifactMeta { digest: digest(5), size: 1 << 40, owner: owner(), created_at: at(1), used_at: at(3) };
    assert_eq!(store.artifact(digest(5)).await.unwrap(), Some(meta));
    assert_eq!(store.stored_bytes(&owner()).await.unwrap(), 1 << 40);
    assert_eq!(store.stored_bytes(&KeyId::of_api_key("other")).await.unwrap(), 0);
}

pub(crate) async fn an_owner_stores_no_more_than_its_quota(store: Arc<dyn Store>) {
    assert_eq!(store.add_artifact(artifact(1, 60, 1), Some(100)).await.unwrap(), Added::New);
    assert_eq!(store.add_artifact(artifact(2, 41, 1), Some(100)).await.unwrap(), Added::OverQuota);
    assert_eq!(store.artifact(digest(2)).await.unwrap(), None);
    assert_eq!(store.add_artifact(artifact(3, 40, 1), Some(100)).await.unwrap(), Added::New);
    let other = NewArtifact { owner: KeyId::of_api_key("other"), ..artifact(2, 41, 1) };
    assert_eq!(store.add_artifact(other, Some(100)).await.unwrap(), Added::New);
    // What goes makes room.
    assert!(store.doom_artifact(digest(1), at(2), at(2)).await.unwrap());
    assert_eq!(store.stored_bytes(&owner()).await.unwrap(), 100);
    store.forget_artifact(digest(1)).await.unwrap();
    assert_eq!(store.stored_bytes(&owner()).await.unwrap(), 40);
    assert_eq!(store.add_artifact(artifact(1, 60, 3), Some(100)).await.unwrap(), Added::New);
}

pub(crate) async fn uploads_at_once_do_not_pass_the_quota_together(store: Arc<dyn Store>) {
    let adding = (1..=20).map(|number| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.add_artifact(artifact(number, 10, 1), Some(55)).await.unwrap() })
    });
    let mut added = 0;
    for adding in adding.collect::<Vec<_>>() {
        added += u32::from(adding.await.unwrap() == Added::New);
    }
    assert_eq!((added, store.stored_bytes(&owner()).await.unwrap()), (5, 50));
}

pub(crate) async fn what_is_unused_can_be_doomed_and_forgotten(store: Arc<dyn Store>) {
    for (number, seconds) in [(1, 10), (2, 5), (3, 20), (4, 7)] {
        store.add_artifact(artifact(number, 1, seconds), None).await.unwrap();
    }
    assert_eq!(store.unused_artifacts(at(10), 9).await.unwrap(), [digest(2), digest(4)]);
    assert_eq!(store.unused_artifacts(at(10), 1).await.unwrap(), [digest(2)]);
    // One that is used meanwhile stays, and no use makes one older.
    store.use_artifacts(vec![digest(2), digest(3), digest(9)], at(12)).await.unwrap();
    assert!(!store.doom_artifact(digest(2), at(10), at(13)).await.unwrap());
    assert_eq!(store.artifact(digest(3)).await.unwrap().unwrap().used_at, at(20));
    assert!(store.doom_artifact(digest(4), at(10), at(13)).await.unwrap());
    assert!(!store.doom_artifact(digest(4), at(10), at(13)).await.unwrap(), "it is one relay's only");
    assert_eq!(store.artifact(digest(4)).await.unwrap(), None);
    assert_eq!(store.unused_artifacts(at(10), 9).await.unwrap(), []);
    // Neither a use nor another upload saves it now.
    store.use_artifacts(vec![digest(4)], at(14)).await.unwrap();
    assert_eq!(store.add_artifact(artifact(4, 1, 14), None).await.unwrap(), Added::Doomed);
    store.forget_artifact(digest(4)).await.unwrap();
    store.forget_artifact(digest(3)).await.unwrap();
    assert!(store.artifact(digest(3)).await.unwrap().is_some(), "it was not doomed");
    assert_eq!(store.add_artifact(artifact(4, 1, 15), None).await.unwrap(), Added::New);
}

pub(crate) async fn what_was_left_doomed_is_taken_over(store: Arc<dyn Store>) {
    store.add_artifact(artifact(1, 1, 1), None).await.unwrap();
    assert!(!store.doom_stray(digest(1), at(2)).await.unwrap(), "there is metadata");
    assert!(store.doom_stray(digest(2), at(2)).await.unwrap());
    assert!(!store.doom_stray(digest(2), at(2)).await.unwrap());
    assert_eq!(store.add_artifact(artifact(2, 1, 3), None).await.unwrap(), Added::Doomed);
    assert_eq!(store.take_doomed(at(2 + DOOMED_SECS), 9).await.unwrap(), []);
    assert_eq!(store.take_doomed(at(3 + DOOMED_SECS), 9).await.unwrap(), [digest(2)]);
    assert_eq!(store.take_doomed(at(3 + DOOMED_SECS), 9).await.unwrap(), [], "it is the other's now");
    store.forget_artifact(digest(2)).await.unwrap();
    assert_eq!(store.stored_bytes(&owner()).await.unwrap(), 1);
    assert_eq!(store.add_artifact(artifact(2, 1, 4), None).await.unwrap(), Added::New);
}

pub(crate) async fn unfinished_tasks_come_in_portions(store: Arc<dyn Store>) {
    let mut unfinished = Vec::new();
    for salt in 0..1100 {
        let mut record = publish(&*store, task(salt), at(1)).await;
        if salt % 10 == 0 {
            let cancel = cancelled(&record);
            commit(&*store, &mut record, at(2), vec![cancel], None).await;
            continue;
        }
        if salt % 7 == 0 {
            let accept = accepted(&record, address(7), at(600));
            commit(&*store, &mut record, at(2), vec![accept], Some(node(1))).await;
        }
        unfinished.push(record);
    }
    let (mut found, mut after, mut portions) = (Vec::new(), Some(0), 0);
    while let Some(from) = after {
        let portion = store.unfinished_tasks(from).await.unwrap();
        found.extend(portion.tasks);
        (after, portions) = (portion.next, portions + 1);
    }
    assert!(found == unfinished, "{} of {} tasks", found.len(), unfinished.len());
    assert!(portions > 1);
}
