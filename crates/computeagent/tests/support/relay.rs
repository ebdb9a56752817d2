//! A scripted relay.

use super::*;

/// How the relay answers a mutation.
pub(crate) enum Reply {
    Status(StatusCode),
    Code(ErrorCode),
    /// It takes the mutation and never answers.
    Hang,
}

pub(crate) type Connected = (Register, Session);

#[derive(Clone)]
pub(crate) struct Relay {
    /// What it says first, where that is not a proper hello.
    pub(crate) hello: Arc<Mutex<Option<String>>>,
    /// What it says last in place of a proper welcome, and the code that it closes with.
    pub(crate) refusal: Arc<Mutex<Option<(ErrorCode, u16)>>>,
    pub(crate) drop: Arc<Mutex<Vec<AttemptKey>>>,
    pub(crate) replies: Arc<Mutex<VecDeque<Reply>>>,
    pub(crate) stored: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    /// After how many bytes the next uploads break off.
    pub(crate) cuts: Arc<Mutex<VecDeque<usize>>>,
    /// What came of uploads that broke off.
    pub(crate) begun: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    /// How many bytes each upload brought.
    pub(crate) brought: Arc<Mutex<Vec<usize>>>,
    pub(crate) dialled: watch::Sender<u64>,
    /// Where the mutations that it takes are signed for.
    pub(crate) domain: Arc<Mutex<Domain>>,
    sessions: mpsc::UnboundedSender<Connected>,
    proofs: mpsc::UnboundedSender<SignedMutation<ComputeProof>>,
    fails: mpsc::UnboundedSender<SignedMutation<FailTask>>,
    statuses: mpsc::UnboundedSender<SignedMutation<UpdateNodeStatus>>,
}

pub(crate) struct Inbox {
    pub(crate) sessions: mpsc::UnboundedReceiver<Connected>,
    pub(crate) proofs: mpsc::UnboundedReceiver<SignedMutation<ComputeProof>>,
    pub(crate) fails: mpsc::UnboundedReceiver<SignedMutation<FailTask>>,
    pub(crate) statuses: mpsc::UnboundedReceiver<SignedMutation<UpdateNodeStatus>>,
}

impl Relay {
    pub(crate) fn new() -> (Self, Inbox) {
        let (sessions, sessions_in) = mpsc::unbounded_channel();
        let (proofs, proofs_in) = mpsc::unbounded_channel();
        let (fails, fails_in) = mpsc::unbounded_channel();
        let (statuses, statuses_in) = mpsc::unbounded_channel();
        let relay = Self {
            hello: Arc::default(),
            refusal: Arc::default(),
            drop: Arc::default(),
            replies: Arc::default(),
            stored: Arc::default(),
            cuts: Arc::default(),
            begun: Arc::default(),
            brought: Arc::default(),
            dialled: watch::Sender::new(0),
            domain: Arc::new(Mutex::new(Domain::UNSETTLED)),
            sessions,
            proofs,
            fails,
            statuses,
        };
        (relay, Inbox { sessions: sessions_in, proofs: proofs_in, fails: fails_in, statuses: statuses_in })
    }

    pub(crate) async fn serve(&self, address: SocketAddr) -> Server {
        Server::start(address, self.router(), None).await
    }

    pub(crate) async fn serve_tls(
        &self,
        address: SocketAddr,
        key: &rcgen::CertifiedKey<rcgen::KeyPair>,
    ) -> Server {
        let private = key.signing_key.serialize_der().try_into().unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![key.cert.der().clone()], private)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Server::start(address, self.router(), Some(Arc::new(config).into())).await
    }

    fn router(&self) -> Router {
        Router::new()
            .route("/v1/provider/connect", any(relay_connect))
            .route("/v1/artifacts/{digest}", get(relay_read).put(relay_store))
            .route("/v1/tasks/{id}/proof", post(relay_proof))
            .route("/v1/tasks/{id}/fail", post(relay_fail))
            .route("/v1/providers/{address}/status", post(relay_status))
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(self.clone())
    }

    pub(crate) fn reply(&self, replies: impl IntoIterator<Item = Reply>) {
        self.replies.lock().unwrap().extend(replies);
    }

    async fn answer(&self) -> Response {
        let reply = self.replies.lock().unwrap().pop_front();
        match reply {
            None => StatusCode::OK.into_response(),
            Some(Reply::Status(status)) => status.into_response(),
            Some(Reply::Code(code)) => {
                let status = StatusCode::from_u16(code.http_status()).unwrap();
                (status, axum::Json(ErrorBody::new(code, "scripted"))).into_response()
            }
            Some(Reply::Hang) => std::future::pending().await,
        }
    }

    async fn shake_hands(self, upgrade: link::Upgrade) -> Option<()> {
        let mut handshake = upgrade.complete().await.ok()?;
        let hello = Hello {
            relay_id: "hz-1".to_owned(),
            session_id: "session-1".to_owned(),
            nonce: Bytes32(B256::repeat_byte(7)),
            domains: vec![DomainView::from(Domain::UNSETTLED)],
        };
        let scripted = self.hello.lock().unwrap().take();
        handshake.send(&scripted.unwrap_or_else(|| serde_json::to_string(&hello).unwrap())).await.ok()?;
        let register: Register = serde_json::from_str(&handshake.recv().await.ok()?).unwrap();
        let signed = Signed { message: register.registration.clone(), signature: register.signature };
        let verified = signed.verify(&Domain::UNSETTLED).expect("the registration is signed");
        assert_eq!(verified.message().nonce, hello.nonce);
        assert_eq!(verified.message().metadata_hash, Bytes32(keccak256(register.metadata.as_bytes())));
        let drop = self.drop.lock().unwrap().clone();
        let welcome = Welcome { accepted: true, generation: 1, heartbeat_secs: 1, drop };
        let refusal = self.refusal.lock().unwrap().take();
        if let Some((code, close)) = refusal {
            let body = ErrorBody::new(code, "scripted");
            handshake.send(&serde_json::to_string(&body).unwrap()).await.ok()?;
            handshake.close(close, code.as_str()).await;
            return None;
        }
        handshake.send(&serde_json::to_string(&welcome).unwrap()).await.ok()?;
        let session = handshake.into_client().await.ok()?;
        self.sessions.send((register, session)).ok()
    }
}

async fn relay_connect(State(relay): State<Relay>, mut request: Request) -> Response {
    relay.dialled.send_modify(|count| *count += 1);
    let (response, upgrade) = link::accept(&mut request, link_config()).unwrap();
    tokio::spawn(relay.shake_hands(upgrade));
    response.map(Body::new)
}

fn link_config() -> link::Config {
    link::Config { max_message: 1 << 20, ..link::Config::default() }
}

async fn relay_read(State(relay): State<Relay>, Path(digest): Path<String>) -> Response {
    if let Some(bytes) = relay.stored.lock().unwrap().get(&digest) {
        return bytes.clone().into_response();
    }
    match relay.begun.lock().unwrap().get(&digest) {
        Some(came) => (StatusCode::NOT_FOUND, [("upload-offset", came.len().to_string())]).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn relay_store(State(relay): State<Relay>, Path(digest): Path<String>, request: Request) -> Response {
    let token = request.headers().get("authorization").cloned().unwrap();
    assert_eq!(token, format!("Bearer {ATTEMPT_TOKEN}"));
    let range = request.headers().get("content-range").map(|range| range.to_str().unwrap().to_owned());
    let Ok(body) = request.into_body().collect().await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let bytes = body.to_bytes();
    relay.brought.lock().unwrap().push(bytes.len());
    let came = relay.begun.lock().unwrap().remove(&digest).unwrap_or_default();
    let mut all = match range {
        None => Vec::new(),
        Some(range) => {
            let (from, size) = (came.len(), came.len() + bytes.len());
            assert_eq!(range, format!("bytes {from}-{}/{size}", size - 1));
            came
        }
    };
    let cut = relay.cuts.lock().unwrap().pop_front();
    if let Some(cut) = cut {
        all.extend(&bytes[..cut]);
        relay.begun.lock().unwrap().insert(digest, all);
        return StatusCode::REQUEST_TIMEOUT.into_response();
    }
    all.extend(&bytes);
    assert_eq!(hash(&all).to_string(), digest);
    relay.stored.lock().unwrap().insert(digest, all);
    StatusCode::CREATED.into_response()
}

async fn relay_proof(
    State(relay): State<Relay>,
    axum::Json(proof): axum::Json<SignedMutation<ComputeProof>>,
) -> Response {
    let domain = *relay.domain.lock().unwrap();
    Signed::from(proof.clone()).verify(&domain).expect("the proof is signed");
    let _ = relay.proofs.send(proof);
    relay.answer().await
}

async fn relay_fail(
    State(relay): State<Relay>,
    axum::Json(fail): axum::Json<SignedMutation<FailTask>>,
) -> Response {
    let domain = *relay.domain.lock().unwrap();
    Signed::from(fail.clone()).verify(&domain).expect("the failure is signed");
    let _ = relay.fails.send(fail);
    relay.answer().await
}

async fn relay_status(
    State(relay): State<Relay>,
    axum::Json(update): axum::Json<SignedMutation<UpdateNodeStatus>>,
) -> Response {
    Signed::from(update.clone()).verify(&Domain::UNSETTLED).expect("the status is signed");
    let _ = relay.statuses.send(update);
    relay.answer().await
}
