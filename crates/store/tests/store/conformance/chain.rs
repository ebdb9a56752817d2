//! The chain's word.

use std::sync::Arc;

use store::Store;
use taskmarket::{
    Address, B256, Bytes32, ChainChange, ChainFact, ChainHead, ChainPlace, Domain, TaskId, U256,
};

use crate::fixtures::{at, publish, task};

const DOMAIN: Domain = Domain { chain_id: 31337, verifying_contract: Address::repeat_byte(0x5e) };

fn head(block: u64) -> ChainHead {
    ChainHead { block, block_hash: Bytes32(B256::from(U256::from(block))), block_time: at(block) }
}

fn fact(block: u64, log_index: u64) -> ChainFact {
    let ChainHead { block_hash, block_time, .. } = head(block);
    ChainFact { tx: block_hash, log_index, block, block_hash, block_time, change: ChainChange::Funded }
}

fn id(byte: u8) -> TaskId {
    TaskId(B256::repeat_byte(byte))
}

/// A portion of facts up to a block.
pub(crate) fn portion(block: u64) -> (Domain, ChainHead, Vec<(TaskId, ChainFact)>) {
    (DOMAIN, head(block), vec![(id(1), fact(block, 0)), (id(2), fact(block, 1))])
}

pub(crate) async fn the_cursor_and_its_facts_are_kept_together(store: Arc<dyn Store>) {
    assert_eq!(store.chain_cursor(DOMAIN).await.unwrap(), None);
    let (_, _, facts) = portion(5);
    assert!(store.advance_chain(DOMAIN, None, head(5), facts).await.unwrap());
    assert_eq!(store.chain_cursor(DOMAIN).await.unwrap(), Some(head(5)));
    let elsewhere = Domain { chain_id: 1, ..DOMAIN };
    assert_eq!(store.chain_cursor(elsewhere).await.unwrap(), None);
    // Another relay was first: neither its cursor nor its facts are kept.
    for from in [None, Some(head(4)), Some(ChainHead { block_hash: Bytes32::default(), ..head(5) })] {
        let (_, _, facts) = portion(9);
        assert!(!store.advance_chain(DOMAIN, from, head(9), facts).await.unwrap());
    }
    assert_eq!(store.chain_cursor(DOMAIN).await.unwrap(), Some(head(5)));
    assert_eq!(store.chain_facts(id(1)).await.unwrap(), vec![fact(5, 0)]);
    assert!(store.advance_chain(DOMAIN, Some(head(5)), head(6), Vec::new()).await.unwrap());
    assert_eq!(store.chain_cursor(DOMAIN).await.unwrap(), Some(head(6)));
}

pub(crate) async fn facts_wait_for_their_tasks(store: Arc<dyn Store>) {
    let here = publish(&*store, task(1), at(1)).await.id;
    let facts = vec![(here, fact(10, 3)), (here, fact(9, 11)), (here, fact(10, 0)), (id(9), fact(10, 1))];
    assert!(store.advance_chain(DOMAIN, None, head(10), facts).await.unwrap());
    assert_eq!(store.chain_facts(here).await.unwrap(), vec![fact(9, 11), fact(10, 0), fact(10, 3)]);
    assert_eq!(store.tasks_with_chain_facts(None, 10).await.unwrap(), vec![here]);
    assert!(store.tasks_with_chain_facts(Some(here), 10).await.unwrap().is_empty());
    store.forget_chain_facts(here, ChainPlace { block: 10, log_index: 0 }).await.unwrap();
    assert_eq!(store.chain_facts(here).await.unwrap(), vec![fact(10, 3)]);
    assert_eq!(store.chain_facts(id(9)).await.unwrap(), vec![fact(10, 1)]);
    assert_eq!(store.prune_chain_facts(at(10)).await.unwrap(), 0);
    assert_eq!(store.prune_chain_facts(at(11)).await.unwrap(), 2);
    assert!(store.tasks_with_chain_facts(None, 10).await.unwrap().is_empty());
}
