//! A development chain with the escrow on it, and who acts there.

use std::time::Duration;

use escrow::anvil::{ACCOUNTS, Anvil, KEYS};
use escrow::{Call, Chain, Rpc, RpcConfig};
use serde_json::{Value, json};
use taskmarket::{
    AcceptTask, Address, Amount, ApproveResult, B256, Bytes32, ComputeProof, ContentHash, DisputeTask,
    Message, ResolveDispute, Runtime, Signed, Task, TaskConfig, TaskId, Timestamp, U256,
};
use url::Url;
use wallet::Wallet;

pub(crate) const REQUESTER: usize = 0;
pub(crate) const PROVIDER: usize = 1;
pub(crate) const OTHER: usize = 2;
pub(crate) const ARBITER: usize = 3;

/// The windows and budget of all tasks here.
pub(crate) const WINDOW: u64 = 600;
pub(crate) const BUDGET: u64 = 1000;
pub(crate) const STAKE: u64 = 500;

/// SHA-256 of [`RESULT`].
pub(crate) const RESULT: &[u8] = b"the result";

/// The chain, with the escrow deployed and two providers' stakes in it.
pub(crate) struct World {
    pub(crate) anvil: Anvil,
    pub(crate) chain: Chain,
    wallets: Vec<Wallet>,
}

/// `None` where there is no chain to be had, which is said.
pub(crate) async fn world() -> Option<World> {
    if Anvil::find().is_none() {
        eprintln!("skipped: no anvil; `npm ci` in contracts/ installs it");
        return None;
    }
    let anvil = Anvil::start().await.unwrap();
    let rpc = rpc(vec![anvil.url()]);
    let code = &escrow::abi::ZORAIComputeEscrow::BYTECODE;
    let data = format!("0x{}{}", hex::encode(code), "0".repeat(64));
    let deployment = json!([{ "from": ACCOUNTS[5], "data": data }]);
    let tx: B256 = rpc.request("eth_sendTransaction", deployment).await.unwrap();
    let receipt = receipt(&rpc, tx).await;
    let address: Address = receipt["contractAddress"].as_str().unwrap().parse().unwrap();
    let chain = Chain::connect(rpc, address).await.unwrap();
    let wallets = KEYS.iter().map(|key| Wallet::from_hex(key).unwrap()).collect();
    let world = World { anvil, chain, wallets };
    for provider in [PROVIDER, OTHER] {
        let stake = world.chain.calls().stake(Address::ZERO, amount(STAKE));
        world.send(provider, &stake).await.unwrap();
    }
    Some(world)
}

pub(crate) fn rpc(urls: Vec<Url>) -> Rpc {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    Rpc::new(RpcConfig::new(urls, None), &tls).unwrap()
}

pub(crate) fn amount(value: u64) -> Amount {
    Amount(U256::from(value))
}

pub(crate) fn result_hash() -> ContentHash {
    use sha2::Digest as _;
    ContentHash(B256::from(<[u8; 32]>::from(sha2::Sha256::digest(RESULT))))
}

impl World {
    pub(crate) fn address(&self, who: usize) -> Address {
        self.wallets[who].address()
    }

    pub(crate) fn wallet(&self, who: usize) -> Wallet {
        Wallet::from_hex(KEYS[who]).unwrap()
    }

    pub(crate) fn sign<M: Message>(&self, who: usize, message: &M) -> Signed<M> {
        self.wallets[who].sign(message, &self.chain.domain()).unwrap()
    }

    /// Has a call mined in a block of its own. The error is what the contract says, or the node.
    pub(crate) async fn send(&self, from: usize, call: &Call) -> Result<B256, String> {
        let value = format!("{:#x}", call.value);
        // With a limit given, what the contract refuses is mined as well, at the second that was set for it.
        let call = json!([{
            "from": ACCOUNTS[from], "to": call.to, "value": value, "data": call.data, "gas": "0xf4240",
        }]);
        let rpc = self.chain.rpc();
        let tx: B256 = rpc.request("eth_sendTransaction", call).await.map_err(|error| error.to_string())?;
        let receipt = receipt(rpc, tx).await;
        if receipt["status"] == "0x1" { Ok(tx) } else { Err(format!("reverted: {receipt}")) }
    }

    /// Asks the development chain for something of its own.
    pub(crate) async fn anvil(&self, method: &str, params: Value) -> Value {
        self.chain.rpc().request(method, params).await.unwrap()
    }

    pub(crate) async fn mine(&self, blocks: u64) {
        self.anvil("anvil_mine", json!([format!("{blocks:#x}")])).await;
    }

    /// The next block has this time.
    pub(crate) async fn next_block_at(&self, time: u64) {
        self.anvil("evm_setNextBlockTimestamp", json!([time])).await;
    }

    pub(crate) async fn now(&self) -> u64 {
        self.chain.head().await.unwrap().time.unix()
    }

    /// A task with an arbiter, whose deadline is an hour ahead.
    pub(crate) async fn task(&self, salt: u8) -> Task {
        let pin = |byte| ContentHash(B256::repeat_byte(byte));
        Task {
            requester: self.address(REQUESTER),
            model_cid: format!("artifact://{}", pin(1)).parse().unwrap(),
            model_hash: pin(1),
            input_cid: format!("artifact://{}", pin(2)).parse().unwrap(),
            input_hash: pin(2),
            config: TaskConfig {
                runtime: Runtime::Wasm,
                params: "{}".to_owned(),
                gpu_type: String::new(),
                gpu_count: 0,
                min_vram: 0,
                max_duration: 60,
                max_attempts: 3,
            },
            token: Address::ZERO,
            budget: amount(BUDGET),
            provider_stake: amount(STAKE),
            dispute_bond: amount(STAKE),
            deadline: Timestamp::from_unix(self.now().await + 3600),
            dispute_window: WINDOW,
            arbiter_window: WINDOW,
            arbiter: self.address(ARBITER),
            salt: Bytes32(B256::repeat_byte(salt)),
        }
    }

    pub(crate) fn id(&self, task: &Task) -> TaskId {
        task.id(&self.chain.domain())
    }

    pub(crate) async fn fund(&self, task: &Task) {
        self.send(REQUESTER, &self.chain.calls().fund(task)).await.unwrap();
    }

    /// Binds a provider on chain for the least time, and answers until when.
    pub(crate) async fn accept(&self, task: &Task, who: usize, attempt: u32) -> u64 {
        let lease_until = self.now().await + 400;
        let call = self.acceptance(task, who, attempt, lease_until);
        self.send(who, &call).await.unwrap();
        lease_until
    }

    /// What binds a provider until then.
    pub(crate) fn acceptance(&self, task: &Task, who: usize, attempt: u32, lease_until: u64) -> Call {
        let lease_until = Timestamp::from_unix(lease_until);
        let accept = AcceptTask { task_id: self.id(task), provider: self.address(who), attempt, lease_until };
        self.chain.calls().accept(task, &self.sign(who, &accept))
    }

    pub(crate) fn proof(&self, task: &Task, who: usize, attempt: u32, now: u64) -> Signed<ComputeProof> {
        let at = Timestamp::from_unix(now);
        let proof = ComputeProof {
            task_id: self.id(task),
            provider: self.address(who),
            attempt,
            model_hash: task.model_hash,
            input_hash: task.input_hash,
            result_hash: result_hash(),
            result_cid: format!("artifact://{}", result_hash()).parse().unwrap(),
            started_at: at,
            finished_at: at,
            gpu_name: "CPU".to_owned(),
        };
        self.sign(who, &proof)
    }

    pub(crate) async fn prove(&self, task: &Task, proof: &Signed<ComputeProof>) -> Result<B256, String> {
        self.send(PROVIDER, &self.chain.calls().prove(task, proof)).await
    }

    pub(crate) async fn approve(&self, task: &Task) -> Result<B256, String> {
        let approve = ApproveResult {
            task_id: self.id(task),
            provider: self.address(PROVIDER),
            attempt: 1,
            result_hash: result_hash(),
            issued_at: Timestamp::from_unix(self.now().await),
        };
        let call = self.chain.calls().approve(task, &self.sign(REQUESTER, &approve));
        self.send(OTHER, &call).await
    }

    pub(crate) fn complaint(&self, task: &Task, now: u64) -> Signed<DisputeTask> {
        self.complaint_about(task, self.address(PROVIDER), 1, now)
    }

    pub(crate) fn complaint_about(
        &self,
        task: &Task,
        provider: Address,
        attempt: u32,
        now: u64,
    ) -> Signed<DisputeTask> {
        let complaint = DisputeTask {
            task_id: self.id(task),
            provider,
            attempt,
            result_hash: result_hash(),
            reason: "it is not what was asked".to_owned(),
            evidence: String::new(),
            issued_at: Timestamp::from_unix(now),
        };
        self.sign(REQUESTER, &complaint)
    }

    pub(crate) async fn dispute(&self, task: &Task, complaint: &Signed<DisputeTask>) -> Result<B256, String> {
        self.send(REQUESTER, &self.chain.calls().dispute(task, complaint)).await
    }

    pub(crate) async fn resolve(&self, task: &Task, provider_bps: u32) -> Result<B256, String> {
        let issued_at = Timestamp::from_unix(self.now().await);
        let verdict = ResolveDispute { task_id: self.id(task), attempt: 1, provider_bps, issued_at };
        self.send(OTHER, &self.chain.calls().resolve(task, &self.sign(ARBITER, &verdict))).await
    }

    /// What somebody may take out.
    pub(crate) async fn credit(&self, who: usize) -> Amount {
        self.chain.withdrawable(Address::ZERO, self.address(who)).await.unwrap()
    }
}

/// What became of a transaction, once it is mined.
async fn receipt(rpc: &Rpc, tx: B256) -> Value {
    eventually("the transaction is mined", || async {
        let receipt: Option<Value> = rpc.request("eth_getTransactionReceipt", json!([tx])).await.unwrap();
        receipt
    })
    .await
}

/// Waits until something is so.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), looking).await.unwrap_or_else(|_| panic!("never: {what}"))
}
