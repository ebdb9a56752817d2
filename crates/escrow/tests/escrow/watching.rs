//! Following the contract where the chain changes unseen, and endpoints do not give all at once.

use escrow::{Chain, ChainError, WatchConfig, WatchError, Watcher};
use serde_json::{Value, json};
use taskmarket::ChainChange;
use tokio::time::timeout;

use crate::contract::{Market, market, task};
use crate::support::{FEW_BLOCKS, LONG, Mood, Proxy, mine, rpc_to, wallet};

const CONFIG: WatchConfig = WatchConfig { confirmations: 3, from_block: 0 };

impl Market {
    /// Funds a task.
    async fn fund(&self) {
        let now = self.chain.head().await.unwrap().time;
        let requester = self.place.open_as(wallet(1)).await;
        requester.send("fund", self.chain.calls().fund(&task(now)), LONG).await.unwrap();
    }
}

/// Follows all that is final; answers how often a task was funded.
async fn follow(watcher: &mut Watcher) -> Result<usize, WatchError> {
    let mut funded = 0;
    loop {
        let progress = watcher.step().await?;
        if let Some((to, facts)) = progress.portion {
            funded += facts.iter().filter(|(_, fact)| fact.change == ChainChange::Funded).count();
            watcher.move_on(to);
        }
        if progress.caught_up {
            return Ok(funded);
        }
    }
}

#[tokio::test]
async fn an_endpoint_that_gives_few_blocks_is_asked_for_few() {
    let Some(market) = market(&[]).await else { return };
    mine(&market.place.rpc, 3 * FEW_BLOCKS).await;
    market.fund().await;
    mine(&market.place.rpc, 20 * FEW_BLOCKS).await;
    let proxy = Proxy::start(market.anvil.url(), Mood::FewBlocks).await;
    let chain = Chain::connect(rpc_to(vec![proxy.url()]), market.chain.escrow()).await.unwrap();
    let mut watcher = Watcher::new(chain, CONFIG, None);
    assert_eq!(follow(&mut watcher).await.unwrap(), 1);
    let last = market.chain.head().await.unwrap().number + 1 - CONFIG.confirmations;
    assert_eq!(watcher.cursor().unwrap().block, last);
}

#[tokio::test]
async fn an_endpoint_that_gives_no_events_in_time_is_asked_for_fewer_blocks_next() {
    let Some(market) = market(&[]).await else { return };
    market.fund().await;
    mine(&market.place.rpc, 2 * FEW_BLOCKS).await;
    let proxy = Proxy::start(market.anvil.url(), Mood::SilentOnManyBlocks).await;
    let chain = Chain::connect(rpc_to(vec![proxy.url()]), market.chain.escrow()).await.unwrap();
    let mut watcher = Watcher::new(chain, CONFIG, None);
    let mut failures = 0;
    let funded = timeout(LONG, async {
        loop {
            match follow(&mut watcher).await {
                Ok(funded) => return funded,
                Err(error) => {
                    assert!(matches!(&error, WatchError::Chain(ChainError::Rpc(_))), "{error}");
                    failures += 1;
                }
            }
        }
    });
    assert_eq!(funded.await.unwrap(), 1);
    assert!(failures > 0, "that it waits is not said");
}

#[tokio::test]
async fn blocks_that_were_replaced_in_an_outage_are_forgotten() {
    let Some(market) = market(&[]).await else { return };
    let rpc = &market.place.rpc;
    let mut watcher = Watcher::new(market.chain.clone(), CONFIG, None);
    mine(rpc, CONFIG.confirmations).await;
    assert_eq!(follow(&mut watcher).await.unwrap(), 0);
    let before: Value = rpc.request("evm_snapshot", json!([])).await.unwrap();
    mine(rpc, 1).await;
    assert_eq!(watcher.step().await.unwrap().replaced, 0);

    // Nobody looks while that block is replaced by the one with the money, and many come after it.
    let replaced = market.chain.head().await.unwrap();
    assert!(rpc.request::<bool>("evm_revert", json!([before])).await.unwrap());
    let later = replaced.time.plus(100);
    rpc.request::<Value>("evm_setNextBlockTimestamp", json!([later.unix()])).await.unwrap();
    market.fund().await;
    assert_eq!(market.chain.head().await.unwrap().number, replaced.number);
    mine(rpc, 100).await;
    assert_eq!(follow(&mut watcher).await.unwrap(), 1);
}

#[tokio::test]
async fn numbers_that_no_chain_reaches_are_refused() {
    let Some(market) = market(&[]).await else { return };
    market.fund().await;
    let proxy = Proxy::start(market.anvil.url(), Mood::BoastsOfNumbers).await;
    let chain = Chain::connect(rpc_to(vec![proxy.url()]), market.chain.escrow()).await.unwrap();
    let head = market.chain.head().await.unwrap().number;
    for error in [chain.head().await.unwrap_err(), chain.logs(0, head, None).await.unwrap_err()] {
        assert!(matches!(error, ChainError::Malformed { .. }), "{error}");
    }
}
