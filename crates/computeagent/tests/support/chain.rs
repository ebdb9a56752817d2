//! A real chain with the escrow on it, an endpoint before it that fails on demand, and a world whose agent takes settled tasks.

use computeagent::{EscrowConfig, EscrowTiming, Terms};
use escrow::anvil::{Anvil, KEYS};
use escrow::tx::{Outbox, OutboxConfig};
use escrow::{Call, Chain, Record, Rpc, RpcConfig, Status};
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};
use taskmarket::Address;
use url::Url;

use super::*;

/// Who resolves disputes.
pub(crate) const ARBITER_KEY: usize = 3;
pub(crate) const WINDOW: u64 = 500;
pub(crate) const STAKE: u64 = 1_000_000;
pub(crate) const BUDGET: u64 = 1_000;
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) struct Settled {
    pub(crate) world: World,
    pub(crate) chain: Chain,
    pub(crate) requester: Outbox,
    pub(crate) endpoint: Endpoint,
    rpc: Rpc,
    _anvil: Anvil,
    _folder: tempfile::TempDir,
}

fn amount(units: u64) -> Amount {
    Amount(U256::from(units))
}

pub(crate) fn address(index: usize) -> Address {
    Wallet::from_hex(KEYS[index]).unwrap().address()
}

impl Settled {
    /// `None`, with the reason printed, where anvil is not installed.
    #[allow(clippy::print_stderr, reason = "a test that is skipped says so")]
    pub(crate) async fn new() -> Option<Self> {
        if Anvil::find().is_none() {
            eprintln!("skipped: anvil is not installed (run `npm ci` in contracts/)");
            return None;
        }
        let anvil = Anvil::start().await.unwrap();
        let tls = daemon::tls::client_config(None).unwrap();
        let rpc = Rpc::new(RpcConfig::new(vec![anvil.url()], None), &tls).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let quick = OutboxConfig { poll: Duration::from_millis(20), ..OutboxConfig::default() };
        let outbox = async |key: usize| {
            let wallet = Wallet::from_hex(KEYS[key]).unwrap();
            Outbox::open(folder.path(), rpc.clone(), wallet, quick.clone()).await.unwrap()
        };
        let deployed =
            escrow::tx::deploy(&outbox(2).await, "deploy", escrow::tx::PERMIT2, LONG).await.unwrap();
        let requester = outbox(1).await;
        let chain = deployed.chain;
        let endpoint = Endpoint::start(anvil.url()).await;
        let mut world = World::new().await;
        *world.relay.domain.lock().unwrap() = chain.domain();
        world.config.escrow = Some(EscrowConfig {
            domain: chain.domain(),
            rpc_urls: vec![endpoint.url()],
            terms: Terms {
                tokens: vec![Address::ZERO],
                arbiters: vec![address(ARBITER_KEY)],
                max_stake: Some(amount(5_000)),
                max_window_secs: 10_000,
                trusted: Vec::new(),
            },
            stake: Some((Address::ZERO, amount(STAKE))),
            max_gas_price: 200_000_000_000,
            confirmations: 1,
            timing: EscrowTiming {
                poll: Duration::from_millis(40),
                slow_poll: Duration::from_millis(80),
                settle_wait_secs: 400,
                withdraw_every_secs: 1_000_000,
                ..EscrowTiming::default()
            },
        });
        Some(Self { world, chain, requester, endpoint, rpc, _anvil: anvil, _folder: folder })
    }

    pub(crate) fn escrow(&mut self) -> &mut EscrowConfig {
        self.world.config.escrow.as_mut().unwrap()
    }

    pub(crate) fn provider(&self) -> Address {
        self.world.config.wallet.address()
    }

    /// A task of the requester's with a stake and a window.
    pub(crate) async fn task(&self, salt: u8) -> Task {
        let head = self.chain.head().await.unwrap();
        Task {
            model_hash: hash(b"model"),
            input_hash: hash(b"input"),
            budget: amount(BUDGET),
            provider_stake: amount(600),
            dispute_bond: amount(600),
            deadline: head.time.max(now()).plus(7_200),
            dispute_window: WINDOW,
            arbiter_window: 400,
            arbiter: address(ARBITER_KEY),
            ..task(salt)
        }
    }

    pub(crate) fn assignment(&self, task: &Task) -> Assignment {
        let domain = self.chain.domain();
        let signed = Wallet::from_hex(REQUESTER_KEY).unwrap().sign(task, &domain).unwrap();
        Assignment {
            task_id: task.id(&domain),
            attempt: 1,
            task: task.clone(),
            signature: signed.signature,
            domain: DomainView::from(domain),
            attempt_token: ATTEMPT_TOKEN.to_owned(),
        }
    }

    /// A funded task.
    pub(crate) async fn funded(&self, salt: u8) -> Assignment {
        let task = self.task(salt).await;
        self.fund(&task).await
    }

    pub(crate) async fn fund(&self, task: &Task) -> Assignment {
        let assignment = self.assignment(task);
        self.send(&format!("fund:{}", assignment.task_id), self.chain.calls().fund(task)).await;
        assignment
    }

    /// Sends something from the requester's account.
    pub(crate) async fn send(&self, purpose: &str, call: Call) {
        self.requester.send(purpose, call, LONG).await.unwrap();
    }

    /// Asks the development chain for something of its own.
    pub(crate) async fn tell(&self, method: &str, params: Value) -> Value {
        self.rpc.request(method, params).await.unwrap()
    }

    /// Offers what must be taken, under the escrow's domain.
    pub(crate) async fn accepted(
        &self,
        session: &Session,
        assignment: &Assignment,
    ) -> SignedMutation<AcceptTask> {
        let (status, body) = offer(session, assignment).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{body}");
        let accept: SignedMutation<AcceptTask> = serde_json::from_value(body).unwrap();
        Signed::from(accept.clone()).verify(&self.chain.domain()).unwrap();
        accept
    }

    pub(crate) async fn record(&self, id: TaskId) -> Record {
        self.chain.record(id).await.unwrap()
    }

    /// Waits until the chain has the task in this status.
    pub(crate) async fn becomes(&self, id: TaskId, status: Status) -> Record {
        soon(status.as_str(), async {
            loop {
                let record = self.record(id).await;
                if record.status == status {
                    return record;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }

    /// Puts a token on the chain of which the provider has some, in so few words that it knows one allowance alone: the first word of its
    /// storage. An account's balance is the word that its address numbers.
    pub(crate) async fn make_token(&self) -> Address {
        let token = Address::repeat_byte(0xca);
        let code = concat!(
            "0x",
            "5f3560e01c8063095ea7b3146031578063dd62ed3e14604557806323b872dd14604b57806370a0823114606e575b5f5ffd5b",
            "6024358015603f575f54602d575b5f556064565b5f546067565b604435805f5410602d576024358054820190555f54035f55",
            "5b60015b5f5260205ff35b60043554606756",
        );
        self.tell("anvil_setCode", json!([token, code])).await;
        let slot = format!("{:#066x}", U256::from_be_slice(self.provider().as_slice()));
        self.tell("anvil_setStorageAt", json!([token, slot, format!("{:#066x}", U256::from(10 * STAKE))]))
            .await;
        token
    }

    /// Waits until the provider's free stake is this.
    pub(crate) async fn stake_is(&self, units: u64) {
        self.stake_in_is(Address::ZERO, units).await;
    }

    /// Waits until the provider's free stake in a token is this.
    pub(crate) async fn stake_in_is(&self, token: Address, units: u64) {
        soon("the stake", async {
            while self.chain.stake(token, self.provider()).await.unwrap().free != amount(units) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    /// Transactions that the provider has sent.
    pub(crate) async fn sent(&self) -> u64 {
        let count: U256 =
            self.rpc.request("eth_getTransactionCount", json!([self.provider(), "latest"])).await.unwrap();
        count.to()
    }

    /// Moves the chain's clock.
    pub(crate) async fn pass(&self, seconds: u64) {
        self.rpc.request::<Value>("evm_increaseTime", json!([seconds])).await.unwrap();
        self.rpc.request::<Value>("evm_mine", json!([])).await.unwrap();
    }

    /// Adds blocks to the chain, and answers nothing before they are there.
    pub(crate) async fn mine(&self, blocks: u64) {
        self.rpc.request::<Value>("anvil_mine", json!([format!("{blocks:#x}")])).await.unwrap();
    }

    /// Has the chain put an empty block in the place of its newest one.
    pub(crate) async fn take_back(&self) {
        self.rpc.request::<Value>("anvil_reorg", json!([1, []])).await.unwrap();
    }

    /// The hash of the block of a task's last step.
    pub(crate) async fn last_block(&self, id: TaskId) -> B256 {
        let head = self.chain.head().await.unwrap().number;
        self.chain.logs(0, head, Some(id)).await.unwrap().last().unwrap().block_hash
    }

    /// What the program `compute-agent earnings` would print as JSON, once it has this many endings in all.
    pub(crate) async fn earnings(&self, endings: u64) -> Value {
        soon("the earnings", async {
            loop {
                let args = computeagent::EarningsArgs {
                    data: Some(self.world.config.data.clone()),
                    days: 10,
                    json: true,
                };
                let report: Value = serde_json::from_str(&args.report().await.unwrap()).unwrap();
                let days = report.as_array().unwrap().iter();
                let tokens = days.flat_map(|day| day["tokens"].as_array().unwrap());
                let counts = tokens
                    .flat_map(|token| ["paid", "split", "lapsed"].map(|name| token[name].as_u64().unwrap()));
                if counts.sum::<u64>() == endings {
                    return report;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }
}

/// An endpoint that passes on what it is asked, transactions only while it takes them.
pub(crate) struct Endpoint {
    server: Server,
    upstream: Upstream,
}

#[derive(Clone)]
struct Upstream {
    url: Url,
    http: reqwest::Client,
    takes: Arc<AtomicBool>,
    /// How many transactions it was given and did not take.
    dropped: watch::Sender<u32>,
    /// How often it was asked for a block, as each look at the chain begins.
    looks: watch::Sender<u32>,
}

impl Endpoint {
    async fn start(url: Url) -> Self {
        let tls = daemon::tls::client_config(None).unwrap();
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls).build().unwrap();
        let takes = Arc::new(AtomicBool::new(true));
        let upstream =
            Upstream { url, http, takes, dropped: watch::Sender::new(0), looks: watch::Sender::new(0) };
        let router = Router::new().fallback(pass_on).with_state(upstream.clone());
        Self { server: Server::start(any_port(), router, None).await, upstream }
    }

    fn url(&self) -> Url {
        format!("http://{}", self.server.address).parse().unwrap()
    }

    pub(crate) fn takes(&self, takes: bool) {
        self.upstream.takes.store(takes, Ordering::SeqCst);
    }

    /// Waits until a transaction was signed that did not get through.
    pub(crate) async fn has_dropped(&self) {
        let mut dropped = self.upstream.dropped.subscribe();
        soon("a transaction", dropped.wait_for(|dropped| *dropped > 0)).await.unwrap();
    }

    /// Waits until the chain was looked at several times more.
    pub(crate) async fn has_looked(&self) {
        let mut looks = self.upstream.looks.subscribe();
        let seen = *looks.borrow();
        soon("looks at the chain", looks.wait_for(|looks| *looks > seen + 5)).await.unwrap();
    }
}

async fn pass_on(State(upstream): State<Upstream>, body: bytes::Bytes) -> Response {
    let request: Value = serde_json::from_slice(&body).unwrap();
    if request["method"] == "eth_sendRawTransaction" && !upstream.takes.load(Ordering::SeqCst) {
        upstream.dropped.send_modify(|dropped| *dropped += 1);
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if request["method"] == "eth_getBlockByNumber" {
        upstream.looks.send_modify(|looks| *looks += 1);
    }
    let asked =
        upstream.http.post(upstream.url.clone()).header("content-type", "application/json").body(body);
    match asked.send().await {
        Ok(answer) => ([("content-type", "application/json")], answer.bytes().await.unwrap()).into_response(),
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}
