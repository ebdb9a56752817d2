//! A scripted compute node.

use super::*;

#[derive(Clone)]
pub(crate) struct Node {
    tasks: watch::Sender<HashMap<TaskId, (ComputeStatus, Vec<u8>)>>,
    pub(crate) requests: Arc<Mutex<Vec<ComputeRequest>>>,
    pub(crate) report: Arc<Mutex<NodeReport>>,
    /// Endless answers that somebody reads.
    pub(crate) open: Arc<watch::Sender<u32>>,
    /// The lines of every task that is known; a follower gets more until there is an empty one.
    pub(crate) log: watch::Sender<Vec<String>>,
}

impl Node {
    pub(crate) fn new() -> Self {
        let device =
            DeviceView { kind: DeviceKind::Gpu, name: "Fake GPU".to_owned(), vram_mb: 1024, uuid: None };
        let report = NodeReport {
            version: "9.9.9".to_owned(),
            platform: "linux/test".to_owned(),
            devices: vec![device],
            free_vram_mb: vec![1000],
            runtimes: vec![Runtime::Wasm],
            slots: 2,
            busy: 0,
            warm_models: Vec::new(),
            models: Vec::new(),
            unhealthy: None,
            draining: false,
            gpu_problems: Vec::new(),
            foreign_gpu_use: Vec::new(),
        };
        Self {
            tasks: watch::Sender::new(HashMap::new()),
            requests: Arc::default(),
            report: Arc::new(Mutex::new(report)),
            open: Arc::new(watch::Sender::new(0)),
            log: watch::Sender::default(),
        }
    }

    pub(crate) async fn serve(&self, address: SocketAddr) -> Server {
        let router = Router::new()
            .route("/status", get(node_report))
            .route("/status/{id}", get(node_status))
            .route("/compute", post(node_compute))
            .route("/compute/{id}", delete(node_cancel))
            .route("/result/{id}", get(node_result))
            .route("/v1/{*path}", post(node_infer))
            .route("/logs/{id}", get(node_logs))
            .layer(axum::middleware::from_fn(node_auth))
            .with_state(self.clone());
        Server::start(address, router, None).await
    }

    fn change(&self, id: &TaskId, change: impl FnOnce(&mut ComputeStatus, &mut Vec<u8>)) {
        self.tasks.send_modify(|tasks| {
            let (status, result) = tasks.get_mut(id).expect("the node knows the task");
            status.revision += 1;
            change(status, result);
        });
    }

    pub(crate) fn run(&self, id: &TaskId, percent: u8) {
        self.change(id, |status, _| (status.phase, status.percent) = (Phase::Running, Some(percent)));
    }

    /// Model and input are here; the attempt waits for the word to begin.
    pub(crate) fn hold(&self, id: &TaskId) {
        self.change(id, |status, _| status.held = true);
    }

    pub(crate) async fn begins(&self, id: &TaskId) {
        let mut tasks = self.tasks.subscribe();
        let begun = |tasks: &HashMap<TaskId, (ComputeStatus, Vec<u8>)>| {
            tasks.get(id).is_some_and(|(status, _)| status.phase == Phase::Running)
        };
        soon("the work to begin", tasks.wait_for(begun)).await.unwrap();
    }

    pub(crate) fn finish(&self, id: &TaskId, bytes: &[u8]) {
        self.change(id, |status, result| {
            *result = bytes.to_vec();
            status.phase = Phase::Done;
            status.outcome = Some(ComputeOutcome {
                model_hash: hash(b"model"),
                input_hash: hash(b"input"),
                result_hash: hash(bytes),
                result_bytes: bytes.len() as u64,
                started_at: now(),
                finished_at: now(),
                device: "Fake GPU".to_owned(),
            });
        });
    }

    pub(crate) fn fail(&self, id: &TaskId, code: &str) {
        self.change(id, |status, _| {
            status.phase = Phase::Failed;
            status.failure = Some(FailureView { code: code.to_owned(), message: "no more fuel".to_owned() });
        });
    }

    pub(crate) fn forget(&self) {
        self.tasks.send_modify(HashMap::clear);
    }

    pub(crate) fn knows(&self, id: &TaskId) -> bool {
        self.tasks.borrow().contains_key(id)
    }

    pub(crate) async fn forgets(&self, id: &TaskId) {
        let mut tasks = self.tasks.subscribe();
        soon("the node to be told", tasks.wait_for(|tasks| !tasks.contains_key(id))).await.unwrap();
    }
}

async fn node_auth(request: Request, next: axum::middleware::Next) -> Response {
    let sent = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    if sent == Some(&format!("Bearer {NODE_TOKEN}")) {
        next.run(request).await
    } else {
        StatusCode::UNAUTHORIZED.into_response()
    }
}

async fn node_report(State(node): State<Node>) -> Response {
    axum::Json(node.report.lock().unwrap().clone()).into_response()
}

async fn node_compute(State(node): State<Node>, axum::Json(request): axum::Json<ComputeRequest>) -> Response {
    let held = node.tasks.borrow().get(&request.task_id).map(|(status, _)| status.clone());
    if let Some(mut status) = held.filter(|status| status.held) {
        if !request.hold {
            node.change(&request.task_id, |status, _| (status.held, status.phase) = (false, Phase::Running));
            status.held = false;
        }
        node.requests.lock().unwrap().push(request);
        return (StatusCode::ACCEPTED, axum::Json(status)).into_response();
    }
    let status = ComputeStatus {
        task_id: request.task_id,
        attempt: request.attempt,
        phase: Phase::Fetching,
        percent: None,
        revision: 1,
        held: false,
        outcome: None,
        failure: None,
    };
    node.requests.lock().unwrap().push(request);
    node.tasks.send_modify(|tasks| drop(tasks.insert(status.task_id, (status.clone(), Vec::new()))));
    (StatusCode::ACCEPTED, axum::Json(status)).into_response()
}

async fn node_status(
    State(node): State<Node>,
    Path(id): Path<TaskId>,
    Query(query): Query<HashMap<String, u64>>,
) -> Response {
    let mut tasks = node.tasks.subscribe();
    if let (Some(seen), Some(wait)) = (query.get("seen"), query.get("wait_ms")) {
        let news = tasks.wait_for(|tasks| tasks.get(&id).is_none_or(|(status, _)| status.revision != *seen));
        let _ = timeout(Duration::from_millis(*wait), news).await;
    }
    match node.tasks.borrow().get(&id) {
        Some((status, _)) => axum::Json(status.clone()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn node_cancel(State(node): State<Node>, Path(id): Path<TaskId>) -> Response {
    node.tasks.send_modify(|tasks| drop(tasks.remove(&id)));
    StatusCode::NO_CONTENT.into_response()
}

async fn node_result(State(node): State<Node>, Path(id): Path<TaskId>) -> Response {
    match node.tasks.borrow().get(&id) {
        Some((_, result)) => result.clone().into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn node_logs(
    State(node): State<Node>,
    Path(id): Path<TaskId>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    if !node.knows(&id) {
        return StatusCode::NOT_FOUND.into_response();
    }
    let from: usize = query["from"].parse().unwrap();
    let follow = query["follow"] == "true";
    let lines =
        futures_util::stream::unfold((node.log.subscribe(), from), move |(mut log, from)| async move {
            if follow {
                log.wait_for(|lines| lines.len() > from).await.ok()?;
            }
            let line = log.borrow().get(from).filter(|line| !line.is_empty()).cloned()?;
            Some((Ok::<_, std::convert::Infallible>(line + "\n"), (log, from + 1)))
        });
    Body::from_stream(lines).into_response()
}

/// Plays an engine: what it answers stands in the request.
async fn node_infer(State(node): State<Node>, request: Request) -> Response {
    let headers = request.headers().clone();
    assert_eq!(headers["x-request-id"], "req-1");
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let asked: Value = serde_json::from_slice(&body).unwrap();
    let usage = r#""usage":{"prompt_tokens":5,"completion_tokens":7}"#;
    let ok = |text: &str| Ok::<_, std::io::Error>(bytes::Bytes::copy_from_slice(text.as_bytes()));
    let mut response = match asked["answer"].as_str().unwrap() {
        "json" => format!("{{\"choices\":[],{usage}}}").into_response(),
        "large" => format!("{{\"data\":\"{}\",{usage}}}", "x".repeat(3 << 20)).into_response(),
        "sse" => {
            let events =
                (0..3).map(move |n| ok(&format!("data: {{\"choices\":[{{\"text\":\"{n}\"}}]}}\n\n")));
            let events = events.chain([ok("data: [DONE]\n\n")]);
            let mut response = Body::from_stream(futures_util::stream::iter(events)).into_response();
            response.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
            response
        }
        "busy" => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "9")], "busy").into_response(),
        "cut" => {
            let parts = [ok("a part"), Err(std::io::Error::other("the engine died"))];
            Body::from_stream(futures_util::stream::iter(parts)).into_response()
        }
        "endless" => {
            node.open.send_modify(|open| *open += 1);
            let open = Open(Arc::clone(&node.open));
            let parts = futures_util::stream::unfold(open, move |open| async move {
                Some((ok(&"x".repeat(65_536)), open))
            });
            Body::from_stream(parts).into_response()
        }
        other => panic!("the node does not know how to answer {other}"),
    };
    let model = headers["x-zorai-model"].clone();
    response.headers_mut().insert("x-seen-model", model);
    response
}

/// Counts an endless answer until nobody reads it any more.
struct Open(Arc<watch::Sender<u32>>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}
