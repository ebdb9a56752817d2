//! Models: talking to them by a pipe and on a terminal, listing them, checking what they answered, and what could be wrong.

use std::time::Duration;

use serde_json::{Value, json};

use crate::engine::{CONTEXT_CHARS, Gateway};
use crate::support::{cli, code, json as parsed, said, stderr, stdout, terminal};

/// As in `support`: how long a command may take.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn what_comes_by_a_pipe_is_answered_once_in_plain_text() {
    let gateway = Gateway::start(&["tiny"], &["inference"]).await;
    let arguments =
        ["chat", "--model", "tiny", "--system", "be brief", "--temperature", "0.5", "--max-tokens", "9"];
    let out = gateway.cli(&arguments, b"hi\nthere\n").await;
    assert_eq!((code(&out), stdout(&out).as_str()), (0, "you said: hi\nthere\n"), "{}", said(&out));
    assert_eq!(stderr(&out), "", "nobody looks on");
    assert_eq!(
        gateway.asked(),
        [json!({
            "model": "tiny",
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi\nthere"}],
            "temperature": 0.5,
            "max_tokens": 9,
            "stream": true,
            "stream_options": {"include_usage": true},
        })]
    );
    let out = gateway.cli(&["chat", "--json"], b"hi").await;
    let told = parsed(&out);
    assert_eq!(told["text"], "\u{1b}[31m\u{1b}]0;owned\u{7}you said: hi", "as it came");
    assert_eq!((&told["model"], &told["provider"]), (&json!("tiny"), &json!(gateway.provider())));
    assert_eq!((&told["usage"]["completion_tokens"], &told["cost"]), (&json!(12), &json!("27")), "{told:#}");
    assert!(told["first_token_ms"].is_u64() && told["request_id"] == "r-2", "{told:#}");
}

#[tokio::test]
async fn the_model_is_the_only_one_or_has_to_be_named() {
    let gateway = Gateway::start(&["one", "org/two"], &["inference"]).await;
    let out = gateway.cli(&["chat"], b"hi").await;
    assert_eq!((code(&out), stdout(&out).as_str()), (2, ""), "{}", said(&out));
    assert_eq!(stderr(&out), "error: 2 models are served: one, org/two\nhint: choose one: --model one\n");
    let none = Gateway::start(&[], &["inference"]).await;
    let out = none.cli(&["chat"], b"hi").await;
    assert!(code(&out) == 1 && stderr(&out).contains("no provider serves a model"), "{}", said(&out));
    let out = gateway.cli(&["chat", "--model", "x"], b"hi").await;
    assert_eq!(
        (code(&out), stderr(&out).as_str()),
        (
            1,
            "error: the relay refuses: there is no model \"[2Jx\"; the nearest is \"tiny\" (model_not_found)\n\
             hint: `zorai-compute models` lists those that there are\n"
        )
    );
}

#[tokio::test]
async fn what_goes_wrong_is_said_on_stderr() {
    let gateway = Gateway::start(&["tiny"], &["tasks:read"]).await;
    let out = gateway.cli(&["chat", "--model", "tiny"], b"hi").await;
    assert!(code(&out) == 3 && stderr(&out).contains("keys create --scope inference"), "{}", said(&out));
    let gateway = Gateway::start(&["tiny"], &["inference"]).await;
    let out = gateway.cli(&["chat"], b"break").await;
    assert_eq!((code(&out), stdout(&out).as_str()), (1, "you said: break\n"), "{}", said(&out));
    assert!(stderr(&out).contains("the answer broke off: the provider's answer broke off (provider_failed)"));
    let out = gateway.cli(&["chat"], b" \n").await;
    assert!(code(&out) == 2 && stderr(&out).contains("there is nothing to answer"), "{}", said(&out));
    let out = gateway.cli(&["chat"], b"\xff").await;
    assert!(code(&out) == 2 && stderr(&out).contains("UTF-8"), "{}", said(&out));
    let out = gateway.cli(&["chat"], "x".repeat(CONTEXT_CHARS + 1).as_bytes()).await;
    assert!(
        code(&out) == 1 && stderr(&out).contains("the provider refuses: This model's maximum"),
        "{}",
        said(&out)
    );
    assert!(stderr(&out).contains("hint: the message alone is longer"), "{}", said(&out));
}

#[tokio::test]
async fn who_is_told_to_come_later_hears_why() {
    let gateway = Gateway::start(&["tiny"], &["inference"]).await;
    let out = gateway.cli(&["chat"], b"later").await;
    assert_eq!((code(&out), stdout(&out).as_str()), (0, "you said: later\n"), "{}", said(&out));
    assert_eq!(
        stderr(&out),
        "the relay says: later: all hosts of this model are busy; trying again in 0 s\n"
    );
    let out = gateway.cli(&["chat"], b"never").await;
    assert_eq!(code(&out), 4, "{}", said(&out));
    assert!(
        stderr(&out).contains("error: the relay refuses: all hosts of this model are busy")
            && stderr(&out).contains("hint: it asks for a pause: try again in 0 s"),
        "{}",
        said(&out)
    );
}

/// Runs the program on a terminal of its own, which types what a script says once it has seen what the script waits for, and gives all that
/// was on the screen.
async fn on_a_terminal(gateway: &Gateway, arguments: &[&str], script: &Value) -> String {
    let out = terminal(&gateway.url, gateway.home.path(), arguments, script).await;
    assert!(out.status.success(), "{}", said(&out));
    stdout(&out)
}

#[tokio::test]
async fn a_conversation_on_a_terminal_goes_on_until_its_user_ends_it() {
    let gateway = Gateway::start(&["tiny", "other"], &["inference"]).await;
    let saved = gateway.home.path().join("saved.json");
    let long = "y".repeat(CONTEXT_CHARS / 2);
    let interrupted = async {
        // The answer that does not end is left, and the relay hears of it.
        tokio::time::timeout(PATIENCE, gateway.left()).await.unwrap();
    };
    let script = json!([
        ["> ", "hello\r"],
        ["you said: hello", ""],
        [" · cost 33 · request r-1", ""],
        ["> ", "endless\r"],
        ["you", "\u{3}"],
        ["stopped · ", ""],
        ["> ", "\u{3}"],
        ["Ctrl-D ends", ""],
        ["> ", "/model nope\r"],
        ["no provider serves nope", ""],
        ["> ", "/model other\r"],
        ["going on with other", ""],
        ["> ", "/nonsense\r"],
        ["there is no /nonsense", ""],
        ["> ", "break\r"],
        ["the answer broke off: ", ""],
        ["> ", format!("{long}\r")],
        ["request r-4", ""],
        ["> ", format!("{long}\r")],
        ["its first 4 messages are forgotten", ""],
        ["its first 2 messages are forgotten", ""],
        ["request r-7", ""],
        ["> ", format!("/save {}\r", saved.display())],
        ["wrote 2 messages", ""],
        ["> ", "/reset\r"],
        ["forgot", ""],
        ["> ", "\u{4}"],
    ]);
    let (screen, ()) =
        tokio::join!(on_a_terminal(&gateway, &["chat", "--model", "tiny"], &script), interrupted);
    assert!(!screen.contains("owned") && !screen.contains("\u{1b}[31m"), "{screen}");
    assert!(screen.contains(&gateway.provider()), "{screen}");
    let asked = gateway.asked();
    let said = |asked: &Value| {
        let messages = asked["messages"].as_array().unwrap().clone();
        messages.iter().map(|message| message["content"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let colours = "\u{1b}[31m\u{1b}]0;owned\u{7}";
    assert_eq!(said(&asked[1]), ["hello", &format!("{colours}you said: hello"), "endless"]);
    assert_eq!(
        (said(&asked[2]).len(), &asked[2]["model"]),
        (5, &json!("other")),
        "what was stopped is kept: {asked:#?}"
    );
    assert_eq!(said(&asked[3])[4], long, "what broke off is not: {asked:#?}");
    let saved: Value = serde_json::from_slice(&std::fs::read(saved).unwrap()).unwrap();
    assert_eq!(saved["messages"][0]["content"], long);
}

#[tokio::test]
async fn an_exchange_is_saved_to_the_byte_and_verifies() {
    let gateway = Gateway::start(&["tiny"], &["inference"]).await;
    let folder = gateway.home.path().join("saved");
    let out = gateway.cli(&["chat", "--save-exchange", folder.to_str().unwrap()], b"hi").await;
    assert_eq!((code(&out), stdout(&out).as_str()), (0, "you said: hi\n"), "{}", said(&out));
    let path = |kind: &str| folder.join(format!("r-1.{kind}")).to_str().unwrap().to_owned();
    let (receipt, request, response) = (path("receipt.json"), path("request.json"), path("response.bin"));
    let command = format!("zorai-compute verify {receipt} --request {request} --response {response}");
    assert!(stderr(&out).contains(&command), "{}", said(&out));

    // Offline: there is no relay.
    let verify = async |more: &[&str]| {
        let mut arguments = vec!["verify", &receipt];
        arguments.extend_from_slice(more);
        cli(gateway.home.path(), &arguments, &[], b"").await
    };
    let out = verify(&["--request", &request, "--response", &response]).await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    let provider = gateway.provider();
    for line in [
        format!("{provider} served request r-1 of relay test-1 by model tiny on letters in q8_0"),
        "3 tokens in, 12 out, as the engine's answer says too  [signed by the provider, and so it is]"
            .to_owned(),
        "it cost 27 = (3 × 1000000 + 12 × 2000000) / 1000000, rounded up  [the relay's word alone]"
            .to_owned(),
        format!(
            "the signature of {provider} holds: 3 of its statements were checked against bytes, 2 are its word alone, 2 the relay's"
        ),
    ] {
        assert!(stdout(&out).contains(&line), "{line}\n{}", said(&out));
    }
    let out = verify(&["--json"]).await;
    assert_eq!((&parsed(&out)["verified"], &parsed(&out)["request_checked"]), (&json!(true), &json!(false)));
    let out = verify(&["--request", &response]).await;
    assert!(
        code(&out) == 5 && stderr(&out).contains("the request is not the one that was served"),
        "{}",
        said(&out)
    );
    let out = verify(&["--response", &request]).await;
    assert!(code(&out) == 5 && stderr(&out).contains("the answer is not the provider's"), "{}", said(&out));
    let changed = std::fs::read_to_string(&receipt).unwrap().replace("\"letters\"", "\"numbers\"");
    std::fs::write(&receipt, changed).unwrap();
    let out = verify(&[]).await;
    assert!(code(&out) == 5 && stderr(&out).contains("error: the receipt: "), "{}", said(&out));

    let online = ["verify", "--receipt", "r-1", "--request", &request, "--response", &response];
    let out = gateway.cli(&online, b"").await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    let out = gateway.cli(&["verify", "--receipt", "r-9"], b"").await;
    assert!(
        code(&out) == 1 && stderr(&out).contains("hint: a receipt is shown to the API key"),
        "{}",
        said(&out)
    );
    let out = gateway.cli(&["verify", &request, "--request", &request], b"").await;
    assert!(code(&out) == 2 && stderr(&out).contains("are for receipts"), "{}", said(&out));
    let out = gateway.cli(&["verify"], b"").await;
    assert_eq!(code(&out), 2, "{}", said(&out));
}

#[tokio::test]
async fn models_are_listed_for_people_and_programs() {
    let gateway = Gateway::start(&["tiny", "org/larger"], &["inference"]).await;
    let out = gateway.cli(&["models"], b"").await;
    assert_eq!(
        (code(&out), stdout(&out).as_str()),
        (
            0,
            "tiny        2  4096  1000000  2000000  q8_0  chat+completions\n\
             org/larger  2  4096  1000000  2000000  q8_0  chat+completions\n"
        )
    );
    let screen = on_a_terminal(&gateway, &["models"], &json!([])).await;
    assert!(
        screen.contains("MODEL       HOSTS  CONTEXT  PRICE IN  PRICE OUT  QUANTIZATION  FOR")
            && screen
                .contains("org/larger  2      4096     1000000   2000000    q8_0          chat+completions")
            && screen.contains("context in tokens; prices: the lowest for a million tokens"),
        "{screen}"
    );
    let out = gateway.cli(&["models", "org/larger", "--json"], b"").await;
    assert_eq!(parsed(&out)["id"], "org/larger");
    let out = gateway.cli(&["models", "--json"], b"").await;
    assert_eq!(parsed(&out).as_array().unwrap().len(), 2);
    let out = gateway.cli(&["models", "x"], b"").await;
    assert!(code(&out) == 1 && stderr(&out).contains("(model_not_found)"), "{}", said(&out));
    let none = Gateway::start(&[], &["inference"]).await;
    let out = none.cli(&["models"], b"").await;
    assert_eq!((code(&out), stdout(&out).as_str()), (0, ""), "{}", said(&out));
}

#[tokio::test]
async fn providers_are_listed_for_people_and_programs() {
    let gateway = Gateway::start(&["tiny"], &["inference"]).await;
    let out = gateway.cli(&["providers"], b"").await;
    assert_eq!((stdout(&out).as_str(), stderr(&out).as_str()), ("", "no provider is online\n"));
    gateway.has_hosts(&[None, Some("it is draining")]);
    let out = gateway.cli(&["providers"], b"").await;
    let lines: Vec<String> = stdout(&out).lines().map(str::to_owned).collect();
    let host = format!("{}  NVIDIA A100 (40960 MiB)  embed+wasm  1/2  ", gateway.provider());
    assert!(lines.len() == 2 && lines.iter().all(|line| line.starts_with(&host)), "{}", said(&out));
    assert!(lines[0].ends_with("  yes") && lines[1].ends_with("  no: it is draining"), "{}", said(&out));
    let screen = on_a_terminal(&gateway, &["providers"], &json!([])).await;
    assert!(screen.contains("PROVIDER  ") && screen.contains("  TAKES TASKS"), "{screen}");
    let out = gateway.cli(&["providers", "--json"], b"").await;
    assert_eq!(parsed(&out)["providers"][1]["closed_for"], "it is draining");
}

#[tokio::test]
async fn the_doctor_looks_at_everything_and_names_what_is_wrong() {
    let gateway = Gateway::start(&["tiny"], &["inference", "tasks:read", "tasks:write"]).await;
    let out = gateway.cli(&["doctor"], b"").await;
    let lines: Vec<String> = stdout(&out).lines().map(str::to_owned).collect();
    let provider = gateway.provider();
    for line in [
        "ok   key: none yet; `run` makes one on first use".to_owned(),
        "ok   TLS: none, which is well on this machine alone".to_owned(),
        "ok   clock: 0 s apart from the relay's".to_owned(),
        "FAIL providers: none is online".to_owned(),
        "ok   API key: good for tasks:read, tasks:write, inference".to_owned(),
        "ok   models: 1 served: tiny".to_owned(),
        format!("ok   receipt: {provider} signed for exactly this request and answer"),
    ] {
        assert!(lines.contains(&line), "{line}\n{}", said(&out));
    }
    assert!(lines.iter().any(|line| line.starts_with("ok   completion: tiny answers: first token after ")));
    assert_eq!((code(&out), stderr(&out).as_str()), (1, "error: not as it should be: providers\n"));

    // A host that is connected is of no use while it takes no tasks.
    let dead = "it is unhealthy: the compute node does not answer";
    gateway.has_hosts(&[Some(dead)]);
    let out = gateway.cli(&["doctor"], b"").await;
    let line = format!("FAIL providers: 1 online, and none takes tasks now; {provider}: {dead}");
    assert!(code(&out) == 1 && stdout(&out).contains(&line), "{}", said(&out));
    assert!(stdout(&out).contains("see that compute-node runs"), "{}", said(&out));
    gateway.has_hosts(&[Some(dead), None]);
    let out = gateway.cli(&["doctor"], b"").await;
    let line = format!("ok   providers: 2 online, 1 of them closed to tasks now; {provider}: {dead}");
    assert!(code(&out) == 0 && stdout(&out).contains(&line), "{}", said(&out));

    let poor = Gateway::start(&["tiny"], &["tasks:read"]).await;
    let out = poor.cli(&["doctor", "--json"], b"").await;
    let told = parsed(&out);
    let status = |name: &str| {
        let checks = told["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == name).unwrap()["status"].clone()
    };
    assert_eq!((code(&out), &told["ok"]), (1, &json!(false)));
    for (name, expected) in [("API key", "ok"), ("completion", "skipped"), ("providers", "failed")] {
        assert_eq!(status(name), expected, "{told:#}");
    }
    let out =
        cli(poor.home.path(), &["doctor", "--relay", &poor.url], &[("ZORAI_AI_API_KEY", "zk-no")], b"").await;
    assert!(stdout(&out).contains("FAIL API key: the relay refuses"), "{}", said(&out));
}
